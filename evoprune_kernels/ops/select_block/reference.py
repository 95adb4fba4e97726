"""``select_block`` in plain torch: the truth, the fallback and the benchmark baseline."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.functional import pad

from evoprune_kernels.ops._rank import keep_highest

#: columns of a block that one tree sums
PIECE = 1024


def select_block_reference(scores: Tensor, bn: int, bk: int, density: float) -> Tensor:
    """Keep the blocks of the highest sums; see ``select_block``."""
    rows, columns = scores.shape
    sums = block_sums(scores, bn, bk)
    kept = keep_highest(sums, round(density * sums.numel()))
    mask = kept.repeat_interleave(bn, 0).repeat_interleave(bk, 1)
    return mask[:rows, :columns].contiguous()


def block_sums(scores: Tensor, bn: int, bk: int) -> Tensor:
    """The sum of every ``bn`` x ``bk`` block in float64: [ceil(rows/bn), ceil(columns/bk)].

    One order for every block and implementation, so that equal blocks have equal sums and masks agree bit by bit:
    each column from the top row down; then the columns in a tree, neighbours first, within pieces of 1024; then the
    pieces from left to right.
    """
    rows, columns = scores.shape
    bn, bk = min(bn, max(rows, 1)), min(bk, max(columns, 1))
    block_rows, block_columns = -(-rows // bn), -(-columns // bk)
    by_column = scores.new_zeros(block_rows, columns, dtype=torch.float64)
    for r in range(min(bn, rows)):
        row = scores[r::bn].float()
        by_column[: row.shape[0]] += row
    blocks = pad(by_column, (0, block_columns * bk - columns)).view(block_rows, block_columns, bk)
    total, *others = (_tree(piece) for piece in blocks.split(PIECE, -1))
    for other in others:
        total = total + other
    return total


def _tree(values: Tensor) -> Tensor:
    """Sums over the last dimension: neighbours first, an odd one out waits."""
    while values.shape[-1] > 1:
        values = pad(values, (0, values.shape[-1] % 2))
        values = values[..., 0::2] + values[..., 1::2]
    return values[..., 0]
