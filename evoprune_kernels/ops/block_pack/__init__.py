"""``evoprune::block_pack`` and ``block_unpack``: a weight and its mask <-> the ``block`` format."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from evoprune_kernels.formats import Block, BlockWeight
from evoprune_kernels.formats.base import kept_mask
from evoprune_kernels.formats.block import block_grid, blocks_of, rows_of
from evoprune_kernels.ops._op import define
from evoprune_kernels.ops.block_pack.reference import block_pack_reference, block_unpack_reference


def _pack_fake(weight: Tensor, mask: Tensor, bn: int, bk: int) -> tuple[Tensor, Tensor, Tensor]:
    count = torch.library.get_ctx().new_dynamic_size()
    grid = block_grid(weight.shape[0], weight.shape[1], bn, bk)
    return (
        weight.new_empty(count, bn, bk),
        weight.new_empty(grid[0] + 1, dtype=torch.int32),
        weight.new_empty(count, dtype=torch.int32),
    )


def _unpack_fake(
    values: Tensor, row_ptr: Tensor, col_idx: Tensor, out_features: int, in_features: int
) -> Tensor:
    return values.new_empty(out_features, in_features)


def _pack_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
    weight, mask, _, _ = inputs
    _, row_ptr, col_idx = output
    ctx.save_for_backward(mask, row_ptr, col_idx)
    ctx.shape = weight.shape
    ctx.mark_non_differentiable(row_ptr, col_idx)


def _pack_backward(ctx: Any, grad: Tensor, *_: Any) -> tuple[Tensor, None, None, None]:
    mask, row_ptr, col_idx = ctx.saved_tensors
    dense = block_unpack_reference(grad, row_ptr, col_idx, *ctx.shape)
    return torch.where(mask, dense, torch.zeros_like(dense)), None, None, None


def _unpack_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    values, row_ptr, col_idx, _, _ = inputs
    ctx.save_for_backward(row_ptr, col_idx)
    ctx.block = values.shape


def _unpack_backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None, None, None, None]:
    row_ptr, col_idx = ctx.saved_tensors
    count, bn, bk = ctx.block
    blocks = blocks_of(grad, bn, bk)
    return blocks[rows_of(row_ptr, count), col_idx.long()], None, None, None, None


PACK = define(
    "block_pack(Tensor weight, Tensor mask, int bn, int bk) -> (Tensor, Tensor, Tensor)",
    reference=block_pack_reference,
    fake=_pack_fake,
    setup_context=_pack_context,
    backward=_pack_backward,
)
UNPACK = define(
    "block_unpack(Tensor values, Tensor row_ptr, Tensor col_idx, int out_features, int in_features) -> Tensor",
    reference=block_unpack_reference,
    fake=_unpack_fake,
    setup_context=_unpack_context,
    backward=_unpack_backward,
)


def block_pack(
    weight: Tensor, bn: int, bk: int, mask: Tensor | None = None, *, impl: str | None = None
) -> BlockWeight:
    """Pack a dense weight whose mask keeps ``bn`` x ``bk`` blocks; differentiable in ``weight``.

    ``values[e] = (weight * mask)[block of e]`` for every block that the mask keeps

    Args:
        weight: [N, K], floating point.
        bn: rows of a block, 1 to 256.
        bk: columns of a block, 1 to 256.
        mask: bool [N, K], True = keep; None keeps ``weight != 0``.
        impl: insist on an implementation.

    Returns:
        BlockWeight; blocks in the order of the rows, then of the columns.

    Raises:
        ValueError, TypeError: if weight and mask do not fit, or an edge is out of range.

    Notes:
        Exact. -0.0 is stored as +0.0. Entries removed inside a kept block are stored as 0.

    Source:
        ``formats/block.py`` (block compressed sparse rows).

    Example:
        >>> import torch
        >>> from evoprune_kernels import ops
        >>> ops.block_pack(torch.tensor([[0.0, 0.0, 5.0, 6.0]]), 1, 2).col_idx.tolist()
        [1]
    """
    kept = kept_mask(weight, mask)
    bn, bk = Block(bn, bk).arguments()
    values, row_ptr, col_idx = PACK(weight, kept, bn, bk, impl=impl)
    return BlockWeight(values, row_ptr, col_idx, (weight.shape[0], weight.shape[1]))


def block_unpack(packed: BlockWeight, *, impl: str | None = None) -> Tensor:
    """The dense weight of a packed one; differentiable in its values.

    ``weight[block of e] = values[e]``, +0.0 elsewhere

    Args:
        packed: a BlockWeight.
        impl: insist on an implementation.

    Returns:
        weight [N, K] of the dtype of the values.

    Raises:
        ValueError, TypeError: if the packed tensors are not valid.

    Notes:
        Exact.

    Source:
        ``formats/block.py``.

    Example:
        >>> import torch
        >>> from evoprune_kernels import ops
        >>> ops.block_unpack(ops.block_pack(torch.tensor([[0.0, 0.0, 5.0, 6.0]]), 1, 2))
        tensor([[0., 0., 5., 6.]])
    """
    packed.validate()
    return UNPACK(packed.float_values(), packed.row_ptr, packed.col_idx, *packed.shape, impl=impl)
