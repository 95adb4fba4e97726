"""BlockWeight: the module's drawing, pack and unpack against a loop, hostile tensors."""

from __future__ import annotations

import pytest
import torch

from evoprune_kernels import formats
from evoprune_kernels.formats import BlockWeight

A, B, C, D, E, F, G, H = (float(i) for i in range(1, 9))
DRAWING = torch.tensor([[A, B, 0, 0, C], [D, E, 0, 0, F], [0, 0, G, 0, 0], [0, 0, 0, H, 0]])

SHAPES = [(4, 5, 2, 2), (33, 61, 16, 16), (16, 32, 16, 1), (8, 40, 1, 16), (7, 5, 3, 2)]
SHAPES += [(3, 2, 16, 16), (0, 8, 4, 4), (8, 0, 4, 4), (130, 20, 64, 8)]


def block_mask(rows: int, columns: int, bn: int, bk: int, density: float = 0.5) -> torch.Tensor:
    kept = torch.rand(-(-rows // bn), -(-columns // bk)) < density
    return kept.repeat_interleave(bn, 0).repeat_interleave(bk, 1)[:rows, :columns]


def test_drawing():
    packed = BlockWeight.pack(DRAWING, 2, 2)
    assert packed.values.tolist() == [[[A, B], [D, E]], [[C, 0], [F, 0]], [[G, 0], [0, H]]]
    assert packed.col_idx.tolist() == [0, 2, 1]
    assert packed.row_ptr.tolist() == [0, 2, 3]
    assert packed.col_idx.dtype == packed.row_ptr.dtype == torch.int32
    assert str(packed.pattern) == "block:2x2"
    packed.validate()


@pytest.mark.parametrize("rows, columns, bn, bk", SHAPES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_round_trip(rows, columns, bn, bk, dtype):
    weight = torch.randn(rows, columns).to(dtype)
    mask = block_mask(rows, columns, bn, bk)
    packed = BlockWeight.pack(weight, bn, bk, mask=mask)
    packed.validate()
    assert torch.equal(packed.unpack(), weight * mask)
    for block_row in range(packed.row_ptr.numel() - 1):  # every stored block, by a loop
        for at in range(packed.row_ptr[block_row], packed.row_ptr[block_row + 1]):
            r, c = block_row * bn, int(packed.col_idx[at]) * bk
            dense = (weight * mask)[r : r + bn, c : c + bk]
            assert torch.equal(packed.values[at, : dense.shape[0], : dense.shape[1]], dense)


def test_without_mask_keeps_what_is_not_zero_and_nan():
    weight = torch.zeros(4, 4)
    weight[0, 3] = float("nan")
    weight[3, 0] = -0.0
    packed = formats.pack(weight, "block:2x2")
    assert packed.col_idx.tolist() == [1] and packed.row_ptr.tolist() == [0, 1, 1]
    assert packed.unpack()[0, 3].isnan()


def test_negative_zero_becomes_positive():
    packed = BlockWeight.pack(torch.tensor([[-0.0, 1.0]]), 1, 2)
    assert not packed.values.signbit().any()


def test_mask_inside_a_block_removes_entries_even_nan():
    weight = torch.tensor([[1.0, float("nan")], [3.0, 4.0]])
    mask = torch.tensor([[True, False], [False, True]])
    packed = BlockWeight.pack(weight, 2, 2, mask=mask)
    assert packed.values.tolist() == [[[1, 0], [0, 4]]]


def test_empty():
    packed = BlockWeight.pack(torch.zeros(32, 32), 16, 16)
    packed.validate()
    assert packed.values.shape == (0, 16, 16) and packed.unpack().count_nonzero() == 0


def test_attributes_rebuild():
    packed = BlockWeight.pack(DRAWING, 2, 2)
    again = BlockWeight.from_tensors(packed.tensors(), packed.attributes())
    assert torch.equal(again.unpack(), DRAWING)
    with pytest.raises(ValueError, match="block:4x2"):
        BlockWeight.from_tensors(packed.tensors(), packed.attributes() | {"pattern": "block:4x2"})


def i32(*numbers: int) -> torch.Tensor:
    return torch.tensor(numbers, dtype=torch.int32)


HOSTILE = {
    "column beyond": ({"col_idx": i32(0, 3, 1)}, r"col_idx\[1\]: expected 0 to 2, got 3"),
    "negative column": ({"col_idx": i32(-1, 2, 1)}, r"col_idx\[0\]: expected 0 to 2, got -1"),
    "columns fall": ({"col_idx": i32(2, 0, 1)}, "increase within block row 0: 2, 0"),
    "column twice": ({"col_idx": i32(2, 2, 1)}, "increase within block row 0: 2, 2"),
    "short col_idx": ({"col_idx": i32(0, 2)}, r"col_idx of shape \(3,\), got \(2,\)"),
    "row_ptr start": ({"row_ptr": i32(1, 2, 3)}, r"row_ptr\[0\]: expected 0, got 1"),
    "row_ptr end": ({"row_ptr": i32(0, 2, 9)}, r"row_ptr\[2\]: expected 3, .* got 9"),
    "row_ptr falls": ({"row_ptr": i32(0, 4, 3)}, "row_ptr falls from 4 to 3 at row 1"),
    "row_ptr short": ({"row_ptr": i32(0, 3)}, r"row_ptr of shape \(3,\), got \(2,\)"),
    "values 2-D": ({"values": torch.zeros(3, 4)}, "values of 3 dimensions, got 2"),
    "block edge 0": ({"values": torch.zeros(3, 0, 2)}, "0x2"),
    "padding": ({"values": torch.ones(3, 2, 2)}, "beyond the edge of the 4x5 weight"),
    "shape": ({"shape": (-4, 5)}, r"\(-4, 5\)"),
}


@pytest.mark.parametrize("change, message", HOSTILE.values(), ids=HOSTILE.keys())
def test_hostile_tensors_are_rejected(change, message):
    packed = BlockWeight.pack(DRAWING, 2, 2)
    fields = packed.tensors() | {"shape": packed.shape} | change
    with pytest.raises(ValueError, match=message):
        BlockWeight(**fields).validate()


@pytest.mark.parametrize("name", ["values", "row_ptr", "col_idx"])
def test_wrong_dtypes_are_rejected(name):
    packed = BlockWeight.pack(DRAWING, 2, 2)
    fields = packed.tensors() | {name: packed.tensors()[name].to(torch.int64)}
    with pytest.raises(TypeError, match=f"{name} of dtype"):
        BlockWeight(**fields, shape=packed.shape).validate()


def test_rejects_bad_weight_and_mask():
    with pytest.raises(ValueError, match="weight of 2 dimensions, got 1"):
        BlockWeight.pack(torch.zeros(4), 2, 2)
    with pytest.raises(ValueError, match=r"mask of shape \(4, 4\), got \(4, 5\)"):
        BlockWeight.pack(torch.zeros(4, 4), 2, 2, mask=torch.ones(4, 5).bool())
    with pytest.raises(ValueError, match="0x2"):
        BlockWeight.pack(torch.zeros(4, 4), 0, 2)
