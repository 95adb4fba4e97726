"""BitmaskWeight: the module's drawing, pack and unpack against a loop, hostile tensors."""

from __future__ import annotations

import pytest
import torch

from evoprune_kernels import formats
from evoprune_kernels.formats import BitmaskWeight

A, B, C, D = 1.0, 2.0, 3.0, 4.0
DRAWING = torch.tensor([[0, A, 0, B, 0, 0, 0, 0, C, 0], [0, 0, 0, 0, 0, 0, 0, 0, 0, D]])
SHAPES = [(2, 10), (33, 61), (1, 8), (5, 7), (0, 8), (8, 0), (16, 64)]


def test_drawing():
    packed = BitmaskWeight.pack(DRAWING)
    assert packed.bits.tolist() == [[0x0A, 0x01], [0x00, 0x02]]
    assert packed.values.tolist() == [A, B, C, D]
    assert packed.row_ptr.tolist() == [0, 3, 4]
    assert packed.bits.dtype == torch.uint8 and packed.row_ptr.dtype == torch.int32
    packed.validate()


@pytest.mark.parametrize("rows, columns", SHAPES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_round_trip(rows, columns, dtype):
    weight = torch.randn(rows, columns).to(dtype)
    mask = torch.rand(rows, columns) < 0.4
    packed = BitmaskWeight.pack(weight, mask=mask)
    packed.validate()
    assert torch.equal(packed.unpack(), weight * mask)
    values = packed.values.tolist()
    for r in range(rows):  # by a loop over the bits
        for k in range(columns):
            kept = packed.bits[r, k // 8] >> (k % 8) & 1
            assert bool(kept) == bool(mask[r, k])
            if kept:
                assert values.pop(0) == weight[r, k]
    assert values == []


def test_without_mask_keeps_what_is_not_zero_and_nan():
    packed = formats.pack(torch.tensor([[float("nan"), -0.0, 0.0, 2.0]]), "unstructured")
    assert packed.bits.tolist() == [[0b1001]]
    assert packed.values[0].isnan() and packed.values[1] == 2


def test_kept_negative_zero_becomes_positive():
    packed = BitmaskWeight.pack(torch.tensor([[-0.0]]), mask=torch.tensor([[True]]))
    assert packed.values.tolist() == [0.0] and not packed.values.signbit().any()


def test_empty():
    packed = BitmaskWeight.pack(torch.zeros(3, 9))
    packed.validate()
    assert packed.values.shape == (0,) and packed.unpack().count_nonzero() == 0


def test_attributes_rebuild():
    packed = BitmaskWeight.pack(DRAWING)
    again = BitmaskWeight.from_tensors(packed.tensors(), packed.attributes())
    assert torch.equal(again.unpack(), DRAWING)


def i32(*numbers: int) -> torch.Tensor:
    return torch.tensor(numbers, dtype=torch.int32)


def u8(*rows: list[int]) -> torch.Tensor:
    return torch.tensor(rows, dtype=torch.uint8)


HOSTILE = {
    "spare bit": ({"bits": u8([10, 1], [0, 4])}, "bits of row 1: spare bits beyond column K = 10"),
    "bit missing": ({"bits": u8([10, 0], [0, 2])}, "bits of row 0: expected 3 set, .* got 2"),
    "bit too many": ({"bits": u8([10, 1], [1, 2])}, "bits of row 1: expected 1 set, .* got 2"),
    "bits shape": ({"bits": u8([10], [0])}, r"bits of shape \(2, 2\), got \(2, 1\)"),
    "row_ptr start": ({"row_ptr": i32(-1, 3, 4)}, r"row_ptr\[0\]: expected 0, got -1"),
    "row_ptr end": ({"row_ptr": i32(0, 3, 5)}, r"row_ptr\[2\]: expected 4, .* got 5"),
    "row_ptr falls": ({"row_ptr": i32(0, 5, 4)}, "row_ptr falls from 5 to 4 at row 1"),
    "row_ptr short": ({"row_ptr": i32(0, 4)}, r"row_ptr of shape \(3,\), got \(2,\)"),
    "values short": ({"values": torch.ones(3)}, r"row_ptr\[2\]: expected 3, .* got 4"),
    "values 2-D": ({"values": torch.zeros(4, 1)}, "values of 1 dimensions, got 2"),
    "shape": ({"shape": (2, -10)}, r"\(2, -10\)"),
}


@pytest.mark.parametrize("change, message", HOSTILE.values(), ids=HOSTILE.keys())
def test_hostile_tensors_are_rejected(change, message):
    packed = BitmaskWeight.pack(DRAWING)
    fields = packed.tensors() | {"shape": packed.shape} | change
    with pytest.raises(ValueError, match=message):
        BitmaskWeight(**fields).validate()


@pytest.mark.parametrize("name", ["values", "bits", "row_ptr"])
def test_wrong_dtypes_are_rejected(name):
    packed = BitmaskWeight.pack(DRAWING)
    fields = packed.tensors() | {name: packed.tensors()[name].to(torch.int64)}
    with pytest.raises(TypeError, match=f"{name} of dtype"):
        BitmaskWeight(**fields, shape=packed.shape).validate()


def test_rejects_bad_weight_and_mask():
    with pytest.raises(ValueError, match="weight of 2 dimensions, got 3"):
        BitmaskWeight.pack(torch.zeros(4, 2, 2))
    with pytest.raises(TypeError, match="mask of dtype"):
        BitmaskWeight.pack(torch.zeros(4, 4), mask=torch.ones(4, 4))
    with pytest.raises(ValueError, match="takes no numbers"):
        BitmaskWeight.pack(torch.zeros(4, 4), 2)
