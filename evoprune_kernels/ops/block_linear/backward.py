"""The backward products of ``block_linear``: ``evoprune::block_linear_dx`` and ``evoprune::block_linear_dw``.

``dX = dY W`` goes through the blocks of a column of blocks, which ``transpose_index`` lists; ``dW = dY^T x`` is
computed on the kept blocks only. Neither has a derivative of its own.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from evoprune_kernels.formats.block import blocks_of, rows_of
from evoprune_kernels.ops._op import define


def transpose_index(
    row_ptr: Tensor, col_idx: Tensor, block_columns: int
) -> tuple[Tensor, Tensor, Tensor]:
    """The kept blocks by columns of blocks.

    Args:
        row_ptr: int32 [B + 1], where each row of blocks starts.
        col_idx: int32 [nnz], the block column of every block.
        block_columns: how many columns of blocks the weight has.

    Returns:
        ``(col_ptr int32 [block_columns + 1], row_idx int32 [nnz], order int32 [nnz])``: entry i of block column c,
        ``col_ptr[c] <= i < col_ptr[c + 1]``, is block ``order[i]`` of values, in block row ``row_idx[i]``,
        increasing.

    Example:
        >>> row_ptr, col_idx = torch.tensor([0, 2, 3]).int(), torch.tensor([0, 2, 0]).int()
        >>> [t.tolist() for t in transpose_index(row_ptr, col_idx, 3)]
        [[0, 2, 2, 3], [0, 1, 0], [0, 2, 1]]
    """
    column, order = col_idx.sort(stable=True)
    starts = torch.arange(block_columns + 1, dtype=column.dtype, device=column.device)
    pointers = torch.searchsorted(column, starts, out_int32=True)
    rows = rows_of(row_ptr, col_idx.shape[0])[order]
    return pointers, rows.to(torch.int32), order.to(torch.int32)


def _dx_reference(
    grad: Tensor,
    values: Tensor,
    col_ptr: Tensor,
    row_idx: Tensor,
    order: Tensor,
    out_features: int,
    in_features: int,
    bn: int,
    bk: int,
) -> Tensor:
    """``block_linear`` with the transposed blocks: on the CPU, its C++ kernel."""
    transposed = values[order].transpose(1, 2).contiguous()
    numbers = (in_features, out_features, bk, bn, "none", "canonical")
    result: Tensor = torch.ops.evoprune.block_linear(
        grad, transposed, col_ptr, row_idx, None, *numbers
    )
    return result


def _dx_fake(
    grad: Tensor,
    values: Tensor,
    col_ptr: Tensor,
    row_idx: Tensor,
    order: Tensor,
    out_features: int,
    in_features: int,
    bn: int,
    bk: int,
) -> Tensor:
    return grad.new_empty(*grad.shape[:-1], in_features)


def _dw_reference(
    grad: Tensor, x: Tensor, row_idx: Tensor, col_idx: Tensor, bn: int, bk: int
) -> Tensor:
    """The dense product, of which the kept blocks are taken."""
    weight = grad.reshape(-1, grad.shape[-1]).t() @ x.reshape(-1, x.shape[-1])
    return blocks_of(weight, bn, bk)[row_idx.long(), col_idx.long()]


def _dw_fake(grad: Tensor, x: Tensor, row_idx: Tensor, col_idx: Tensor, bn: int, bk: int) -> Tensor:
    return grad.new_empty(row_idx.shape[0], bn, bk)


def _no_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    pass


def _no_derivative(ctx: Any, grad: Tensor) -> None:
    raise RuntimeError("block_linear has no second derivative")


#: grad [..., N], values [nnz, bn, bk], the index of ``transpose_index`` -> dX [..., K]
DX = define(
    "block_linear_dx(Tensor grad, Tensor values, Tensor col_ptr, Tensor row_idx, Tensor order, int out_features, "
    "int in_features, int bn, int bk) -> Tensor",
    reference=_dx_reference,
    fake=_dx_fake,
    setup_context=_no_context,
    backward=_no_derivative,
)

#: grad [..., N], x [..., K], the block row and block column of every kept block -> dW [nnz, bn, bk]
DW = define(
    "block_linear_dw(Tensor grad, Tensor x, Tensor row_idx, Tensor col_idx, int bn, int bk) -> Tensor",
    reference=_dw_reference,
    fake=_dw_fake,
    setup_context=_no_context,
    backward=_no_derivative,
)
