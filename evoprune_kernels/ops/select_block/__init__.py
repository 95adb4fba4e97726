"""``evoprune::select_block``: scores -> mask of a ``block:RxC`` pattern."""

from __future__ import annotations

import torch
from torch import Tensor

from evoprune_kernels._check import check, check_dim
from evoprune_kernels.ops._op import define
from evoprune_kernels.ops.select_block.reference import select_block_reference


def _fake(scores: Tensor, bn: int, bk: int, density: float) -> Tensor:
    return scores.new_empty(scores.shape, dtype=torch.bool)


OP = define(
    "select_block(Tensor scores, int bn, int bk, float density) -> Tensor",
    reference=select_block_reference,
    fake=_fake,
)


def select_block(
    scores: Tensor, bn: int, bk: int, density: float, *, impl: str | None = None
) -> Tensor:
    """Keep the ``bn`` x ``bk`` blocks of the highest total score, exactly ``round(density * blocks)`` of them.

    ``mask[r, c] = rank of (sum of scores over the block of (r, c)) among all blocks < round(density * blocks)``

    Args:
        scores: [rows, columns], any real dtype; read as float32, summed in float64.
        bn: rows of a block, at least 1.
        bk: columns of a block, at least 1.
        density: fraction of the blocks that is kept, 0-1. Half a unit rounds to even, as ``round`` does.
        impl: insist on an implementation (``"cpu"`` or ``"reference"``).

    Returns:
        bool mask [rows, columns], constant within a block. Blocks cut off by the edge sum what they have.

    Raises:
        ValueError: if ``scores`` is not 2-D or ``bn``, ``bk``, ``density`` are out of range.

    Notes:
        Exact and deterministic. Ties: the lowest block wins, counted row by row. A block that holds a NaN ranks below
        every other.

    Source:
        Narang et al., "Block-Sparse Recurrent Neural Networks", 2017 (with the sum in place of the maximum).

    Example:
        >>> import torch
        >>> from evoprune_kernels import ops
        >>> scores = torch.tensor([[1.0, 1.0, 3.0, 0.0], [1.0, 1.0, 0.0, 0.0]])
        >>> ops.select_block(scores, 2, 2, 0.5)
        tensor([[ True,  True, False, False],
                [ True,  True, False, False]])
    """
    check_dim(scores, 2, "scores")
    check(bn >= 1 and bk >= 1, f"expected bn >= 1 and bk >= 1, got bn={bn}, bk={bk}")
    check(0.0 <= density <= 1.0, f"expected 0 <= density <= 1, got density={density}")
    return OP(scores, bn, bk, density, impl=impl)
