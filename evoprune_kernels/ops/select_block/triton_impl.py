"""``select_block`` in Triton: the sums of all blocks, then the highest of them, then the mask.

::

    sums     program = GROUPS blocks of one row of blocks; tile [GROUPS, WIDTH], a block's columns (1024 at a time)
             each column from the top row down, in fp64; then the columns in a tree, neighbours first:
             [GROUPS, WIDTH] -> [GROUPS, WIDTH / 2, 2] -> .. -> [GROUPS]; then the pieces from left to right
    topk     the kernels of ``select_topk`` on the sums [rows of blocks, columns of blocks]
    mask     every entry that of its block

The order of the sums is that of ``reference.block_sums``, so masks agree bit by bit: a column that is not there adds 0.
Bound by memory: one read of the scores, one byte written an entry. Ties: the lowest block wins; a block that holds a
NaN ranks below every other.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from evoprune_kernels.ops.select_block.reference import PIECE
from evoprune_kernels.ops.select_topk.triton_impl import keep_highest_triton, scores_unfit

#: columns of a tile, with four warps: eight fp64 sums a thread
TILE = 1024


@triton.jit
def tree_sum(values, GROUPS: tl.constexpr, WIDTH: tl.constexpr, LEVELS: tl.constexpr):
    """[GROUPS, WIDTH] -> [GROUPS], neighbours first; WIDTH is 2**LEVELS."""
    for level in tl.static_range(LEVELS):
        values = tl.sum(tl.reshape(values, (GROUPS, WIDTH >> (level + 1), 2)), 2)
    return tl.reshape(values, (GROUPS,))


@triton.jit
def block_sums_kernel(
    scores_ptr, sums_ptr, rows, columns, bn, bk, block_columns,
    GROUPS: tl.constexpr, WIDTH: tl.constexpr, LEVELS: tl.constexpr,
):  # fmt: skip
    group = tl.program_id(1) * GROUPS + tl.arange(0, GROUPS)
    top = tl.program_id(0) * bn
    total = tl.zeros((GROUPS,), tl.float64)
    for piece in range(0, bk, WIDTH):
        lane = piece + tl.arange(0, WIDTH)[None, :]
        column = group[:, None] * bk + lane
        inside = (lane < bk) & (column < columns)
        sums = tl.zeros((GROUPS, WIDTH), tl.float64)
        for row in range(top, tl.minimum(top + bn, rows)):
            at = scores_ptr + tl.cast(row, tl.int64) * columns + column
            sums += tl.load(at, mask=inside, other=0.0).to(tl.float32).to(tl.float64)
        total += tree_sum(sums, GROUPS, WIDTH, LEVELS)
    at = tl.program_id(0) * block_columns + group
    tl.store(sums_ptr + at, total, mask=group < block_columns)


@triton.jit
def block_mask_kernel(
    kept_ptr, mask_ptr, columns, bn, bk, block_columns, TILE: tl.constexpr
):  # fmt: skip
    row = tl.program_id(0)
    column = tl.program_id(1) * TILE + tl.arange(0, TILE)
    at = kept_ptr + row // bn * block_columns + column // bk
    kept = tl.load(at, mask=column < columns, other=0)
    tl.store(mask_ptr + row.to(tl.int64) * columns + column, kept, mask=column < columns)


def block_sums_triton(scores: Tensor, bn: int, bk: int) -> Tensor:
    """As ``reference.block_sums``; scores are not empty."""
    rows, columns = scores.shape
    bn, bk = min(bn, rows), min(bk, columns)
    block_rows, block_columns = -(-rows // bn), -(-columns // bk)
    sums = scores.new_empty(block_rows, block_columns, dtype=torch.float64)
    width = min(triton.next_power_of_2(bk), PIECE)
    groups = max(1, min(TILE // width, triton.next_power_of_2(block_columns)))
    block_sums_kernel[(block_rows, triton.cdiv(block_columns, groups))](
        scores.contiguous(), sums, rows, columns, bn, bk, block_columns,
        GROUPS=groups, WIDTH=width, LEVELS=width.bit_length() - 1, enable_fp_fusion=True,
    )  # fmt: skip
    return sums


def select_block_unfit(scores: Tensor, bn: int, bk: int, density: float) -> str | None:
    """Why the kernels cannot run, or None."""
    if scores.dim() != 2 or bn < 1 or bk < 1:
        return f"takes scores of 2 dimensions and blocks of 1x1 at least, got {scores.dim()} and {bn}x{bk}"
    return scores_unfit([scores], density)


def select_block_triton(scores: Tensor, bn: int, bk: int, density: float) -> Tensor:
    """As ``select_block_reference``."""
    rows, columns = scores.shape
    mask = torch.empty(rows, columns, dtype=torch.bool, device=scores.device)
    if mask.numel() == 0:
        return mask
    bn, bk = min(bn, rows), min(bk, columns)
    blocks = -(-rows // bn) * -(-columns // bk)
    keep = round(density * blocks)
    if keep <= 0 or keep >= blocks:
        return mask.fill_(keep > 0)
    (kept,) = keep_highest_triton([block_sums_triton(scores, bn, bk)], keep)
    block_mask_kernel[(rows, triton.cdiv(columns, TILE))](
        kept, mask, columns, bn, bk, kept.shape[1], TILE=TILE, enable_fp_fusion=True
    )
    return mask
