"""The nm format: the drawing as a literal test, round trips, padding, special values, hostile input."""

from __future__ import annotations

import dataclasses

import pytest
import torch

from evoprune_kernels import formats
from evoprune_kernels.formats import NMWeight

PATTERNS = [(2, 4), (1, 4), (4, 8), (1, 1), (1, 2), (3, 5), (2, 3), (7, 32), (4, 4), (5, 17)]


def random_mask(rows: int, columns: int, n: int, m: int) -> torch.Tensor:
    """At most n kept in every group of m, many groups under-full."""
    mask = torch.zeros(rows, columns, dtype=torch.bool)
    for row in range(rows):
        for start in range(0, columns, m):
            width = min(m, columns - start)
            count = int(torch.randint(0, min(n, width) + 1, ()))
            mask[row, start + torch.randperm(width)[:count]] = True
    return mask


def indices_by_hand(packed: NMWeight) -> list[list[int]]:
    """Reads the bit stream with Python integers."""
    bits = max(1, (packed.m - 1).bit_length())
    rows = []
    for row in packed.meta.tolist():
        stream = int.from_bytes(bytes(row), "little")
        count = packed.values.shape[1]
        rows.append([stream >> i * bits & (1 << bits) - 1 for i in range(count)])
    return rows


def test_the_drawing():
    weight = torch.tensor([[0.0, 5.0, 0.0, 6.0, 7.0, 8.0, 0.0, 0.0]])
    packed = NMWeight.pack(weight, 2, 4)
    assert packed.values.tolist() == [[5.0, 6.0, 7.0, 8.0]]
    assert packed.meta.tolist() == [[0x4D]]
    assert torch.equal(packed.unpack(), weight)


def test_under_full_groups_take_the_lowest_free_index():
    weight = torch.tensor([[0.0, 0.0, 0.0, 9.0, 0.0, 0.0, 0.0, 0.0, 0.0, 7.0]])
    packed = NMWeight.pack(weight, 2, 4)
    assert packed.values.tolist() == [[0.0, 9.0, 0.0, 0.0, 0.0, 7.0]]
    assert indices_by_hand(packed) == [[0, 3, 0, 1, 0, 1]]
    assert packed.meta.tolist() == [[0b0100_1100, 0b0100]]
    packed.validate()


def test_three_bit_indices_cross_bytes():
    weight = torch.zeros(1, 8)
    weight[0, [2, 5, 7]] = torch.tensor([1.0, 2.0, 3.0])
    packed = NMWeight.pack(weight, 3, 8)
    assert packed.meta.tolist() == [[0b11_101_010, 0b1]]


@pytest.mark.parametrize("n, m", PATTERNS)
@pytest.mark.parametrize("rows, columns", [(5, 64), (3, 61), (1, 1), (4, 3), (0, 8), (3, 0)])
def test_round_trip(n, m, rows, columns):
    mask = random_mask(rows, columns, n, m)
    weight = torch.randn(rows, columns)
    packed = NMWeight.pack(weight, n, m, mask=mask)
    packed.validate()
    assert torch.equal(packed.unpack(), torch.where(mask, weight, 0.0))
    for row in indices_by_hand(packed):
        for g in range(0, len(row), n):
            assert row[g : g + n] == sorted(set(row[g : g + n]))


def test_mask_none_keeps_what_is_not_zero_and_nan():
    nan, inf = float("nan"), float("inf")
    weight = torch.tensor([[nan, 0.0, -0.0, inf]])
    packed = NMWeight.pack(weight, 2, 4)
    assert packed.values.isnan().tolist() == [[True, False]]
    assert packed.values[0, 1] == inf


def test_negative_zero_becomes_positive_zero():
    weight = torch.full((1, 4), -0.0)
    packed = NMWeight.pack(weight, 2, 4, mask=torch.tensor([[True, False, True, False]]))
    assert not packed.values.signbit().any()
    assert not packed.unpack().signbit().any()


def test_the_mask_may_drop_nan():
    weight = torch.tensor([[float("nan"), 1.0, 2.0, float("nan")]])
    packed = NMWeight.pack(weight, 2, 4, mask=torch.tensor([[False, True, True, False]]))
    assert packed.unpack().tolist() == [[0.0, 1.0, 2.0, 0.0]]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16, torch.float64])
def test_keeps_the_dtype(dtype):
    packed = NMWeight.pack(torch.ones(2, 4, dtype=dtype).tril(), 2, 4)
    assert packed.unpack().dtype == dtype == packed.dtype


def test_over_full_group_is_named():
    weight = torch.zeros(3, 12)
    weight[2, 8:11] = 1.0
    with pytest.raises(
        ValueError, match=r"weight\[2, 8:12\] keeps 3 values, the pattern 2:4 allows 2"
    ):
        NMWeight.pack(weight, 2, 4)


@pytest.mark.parametrize(
    "weight, mask, error, match",
    [
        (torch.zeros(4), None, ValueError, "2 dimensions, got 1"),
        (torch.zeros(2, 4, dtype=torch.int32), None, TypeError, "int32"),
        (
            torch.zeros(2, 4),
            torch.zeros(2, 5, dtype=torch.bool),
            ValueError,
            r"\(2, 4\), got \(2, 5\)",
        ),
        (torch.zeros(2, 4), torch.zeros(2, 4), TypeError, "bool, got torch.float32"),
    ],
)
def test_pack_rejects(weight, mask, error, match):
    with pytest.raises(error, match=match):
        NMWeight.pack(weight, 2, 4, mask=mask)


def valid() -> NMWeight:
    return NMWeight.pack(torch.tensor([[1.0, 2.0, 0.0, 0.0, 3.0, 4.0]]), 2, 4)


@pytest.mark.parametrize(
    "change, match",
    [
        ({"values": torch.zeros(1, 3)}, r"values of shape \(1, 4\), got \(1, 3\)"),
        ({"values": torch.zeros(4)}, "values of 2 dimensions, got 1"),
        ({"meta": torch.zeros(1, 2, dtype=torch.uint8)}, r"meta of shape \(1, 1\), got \(1, 2\)"),
        ({"meta": torch.tensor([[0x40]], dtype=torch.uint8)}, "group 0: indices do not increase"),
        ({"meta": torch.tensor([[0x14]], dtype=torch.uint8)}, "group 1: indices do not increase"),
        (
            {"meta": torch.tensor([[0xE4]], dtype=torch.uint8)},
            r"values\[0, 2\] lies beyond column K = 6",
        ),
        ({"shape": (2, 6)}, r"values of shape \(2, 4\), got \(1, 4\)"),
        ({"shape": (1, 60)}, "values of shape"),
        ({"shape": (-1, 6)}, "two sizes"),
        ({"n": 5}, "got 5:4"),
    ],
)
def test_validate_rejects(change, match):
    valid().validate()
    with pytest.raises(ValueError, match=match):
        dataclasses.replace(valid(), **change).validate()


def test_validate_rejects_types_and_ranges():
    with pytest.raises(TypeError, match="expected meta of dtype"):
        dataclasses.replace(valid(), meta=valid().meta.long()).validate()
    three = NMWeight.pack(torch.tensor([[1.0, 0.0, 0.0]]), 1, 3)
    with pytest.raises(ValueError, match="row 0, group 0: index >= m = 3"):
        dataclasses.replace(three, meta=torch.full_like(three.meta, 3)).validate()
    with pytest.raises(ValueError, match="row 0: spare bits set"):
        dataclasses.replace(three, meta=three.meta | 0x10).validate()


def test_tensors_and_attributes_rebuild():
    packed = valid()
    assert packed.attributes() == {"format": "nm", "pattern": "2:4", "shape": "1x6"}
    again = NMWeight.from_tensors(packed.tensors(), packed.attributes())
    assert torch.equal(again.unpack(), packed.unpack())
    with pytest.raises(ValueError, match="missing \\['meta'\\]"):
        NMWeight.from_tensors({"values": packed.values}, packed.attributes())
    with pytest.raises(ValueError, match="cannot hold the pattern 'unstructured'"):
        NMWeight.from_tensors(packed.tensors(), {"pattern": "unstructured", "shape": "1x6"})
    with pytest.raises(ValueError, match="expected a shape 'NxK', got '6'"):
        NMWeight.from_tensors(packed.tensors(), {"pattern": "2:4", "shape": "6"})


def test_to_casts_the_values_only():
    packed = valid().to(torch.bfloat16)
    assert packed.values.dtype == torch.bfloat16 and packed.meta.dtype == torch.uint8
    assert packed.nbytes == 4 * 2 + 1


def test_formats_pack():
    packed = formats.pack(torch.eye(4), "2:4")
    assert isinstance(packed, NMWeight) and str(packed.pattern) == "2:4"
