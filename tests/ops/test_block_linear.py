"""block_linear: what holds for this op alone; ``test_linear.py`` holds the rest."""

from __future__ import annotations

import pytest
import torch

from evoprune_kernels import ops
from evoprune_kernels.formats import BlockWeight
from evoprune_kernels.formats.block import rows_of
from evoprune_kernels.ops.block_linear.backward import DW, DX, transpose_index
from tests.ops.linears import BLOCK, LAYOUTS, cut, poke


def test_literal():
    packed = BlockWeight.pack(torch.tensor([[0.0, 0.0, 5.0, 6.0], [0.0, 0.0, 1.0, 0.0]]), 2, 2)
    x = torch.tensor([[1.0, 2.0, 3.0, 4.0]])
    for layout in LAYOUTS:
        y = BLOCK.call(x, packed, torch.tensor([0.5, -4.0]), "relu", layout)
        assert y.tolist() == [[39.5, 0.0]]


def test_opcheck_of_prepare():
    packed = BLOCK.small()[1]
    arguments = (*packed.tensors().values(), *packed.shape)
    torch.library.opcheck(torch.ops.evoprune.block_prepare.default, arguments)


@pytest.mark.parametrize("tokens", [1, 9, 70])
def test_nan_and_infinity_reach_only_their_outputs(tokens, isa):
    """A kept block spreads them as the dense product does; a removed one does not read x at all."""
    _, packed, _ = BLOCK.small()
    x = torch.ones(tokens, 61)
    x[0, 3], x[-1, 60] = float("nan"), float("inf")
    y = BLOCK.call(x, packed, impl="cpu")
    for token in range(tokens):
        for block_row in range(3):
            blocks = slice(int(packed.row_ptr[block_row]), int(packed.row_ptr[block_row + 1]))
            reached = {int(c) for c in packed.col_idx[blocks]}
            bad = (token == 0 and 0 in reached) or (token == tokens - 1 and 3 in reached)
            rows = y[token, block_row * 16 : block_row * 16 + 16]
            assert rows.isfinite().all() == (not bad)


CORRUPT = [
    ("canonical", poke(2, 0, 4), r"col_idx\[0\]: expected 0 to 3, got 4"),
    ("canonical", poke(2, 1, -1), r"col_idx\[1\]: expected 0 to 3, got -1"),
    ("canonical", poke(1, 0, 1), "row_ptr must rise from 0"),
    ("canonical", poke(1, 1, 99), "row_ptr must rise from 0"),
    ("canonical", poke(1, 3, 99), "row_ptr must rise from 0"),
    ("canonical", cut(0), "row_ptr must rise|col_idx"),
    ("canonical", cut(1), r"row_ptr.size\(0\) = 4, got 3"),
    ("canonical", cut(2), "col_idx"),
    ("cpu", poke(2, 0, 64), "col_idx within 0 to 48, got 0 to 64"),
    ("cpu", poke(2, 0, -16), "col_idx within 0 to 48, got -16"),
    ("cpu", poke(1, 1, 99), "row_ptr must rise from 0"),
    ("cpu", cut(1), r"row_ptr.size\(0\) = 4, got 3"),
    ("cpu", cut(2), "col_idx"),
]


@pytest.mark.parametrize("layout, change, match", CORRUPT)
def test_corrupt_tensors_are_refused_by_the_kernel(layout, change, match):
    x, packed, _ = BLOCK.small()
    tensors = list(ops.prepare(packed) if layout == "cpu" else packed.tensors().values())
    change(tensors)
    rest = (*packed.shape, *packed.pattern.arguments(), "none", layout)
    with pytest.raises(RuntimeError, match=match):
        ops.block_linear.OP(x, *tensors, None, *rest, impl="cpu")


def backward_inputs():
    x, packed, _ = BLOCK.small()
    rows = rows_of(packed.row_ptr, packed.values.shape[0]).int()
    return torch.randn(5, 33), x, packed, rows


def test_the_transposed_index_lists_every_block_by_column():
    packed = BLOCK.small(rows=100, columns=200)[1]
    col_ptr, row_idx, order = transpose_index(packed.row_ptr, packed.col_idx, 13)
    expected = BlockWeight.pack(packed.unpack().t(), 16, 16)
    assert torch.equal(packed.values[order].transpose(1, 2), expected.values)
    assert torch.equal(col_ptr, expected.row_ptr) and torch.equal(row_idx, expected.col_idx)
    assert {t.dtype for t in (col_ptr, row_idx, order)} == {torch.int32}


def test_backward_products_match_the_dense_ones():
    grad, x, packed, rows = backward_inputs()
    dx = DX(
        grad, packed.values, *transpose_index(packed.row_ptr, packed.col_idx, 4), 33, 61, 16, 16
    )
    torch.testing.assert_close(dx, grad @ packed.unpack())
    dw = BlockWeight(
        DW(grad, x, rows, packed.col_idx, 16, 16), packed.row_ptr, packed.col_idx, (33, 61)
    )
    dw.validate()
    kept = packed.unpack() != 0
    torch.testing.assert_close(dw.unpack(), torch.where(kept, grad.t() @ x, torch.zeros(())))


def test_opcheck_of_the_backward_products():
    grad, x, packed, rows = backward_inputs()
    index = transpose_index(packed.row_ptr, packed.col_idx, 4)
    torch.library.opcheck(DX.overload, (grad, packed.values, *index, 33, 61, 16, 16))
    torch.library.opcheck(DW.overload, (grad, x, rows, packed.col_idx, 16, 16))


def test_a_second_derivative_is_refused():
    x, packed, _ = BLOCK.small()
    x.requires_grad_()
    upstream = torch.ones(5, 33, requires_grad=True)
    (grad,) = torch.autograd.grad(
        BLOCK.call(x, packed, layout="canonical"), x, upstream, create_graph=True
    )
    with pytest.raises(RuntimeError, match="block_linear has no second derivative"):
        grad.sum().backward()
