"""``block_prepare`` in plain torch, and its inverse. The drawing of the layout is in csrc/cpu/strips.h."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from evoprune_kernels.formats.block import block_grid, row_pointers, rows_of

STRIP = 16  # the most rows that share a vector


def strip_rows(bn: int) -> int:
    """Rows of a strip: the largest power of two up to 16 that divides ``bn``."""
    return math.gcd(bn, STRIP)


def check_columns(row_ptr: Tensor, col_idx: Tensor, block_columns: int) -> None:
    """Raise ``ValueError`` unless the pointers are monotone over ``col_idx`` and the columns in range."""
    count = col_idx.shape[0]
    falls = bool((row_ptr.diff() < 0).any())
    if falls or int(row_ptr[0]) != 0 or int(row_ptr[-1]) != count:
        raise ValueError(f"expected row_ptr to run from 0 to {count}, got {row_ptr.tolist()}")
    if count and (int(col_idx.min()) < 0 or int(col_idx.max()) >= block_columns):
        got = f"{int(col_idx.min())} to {int(col_idx.max())}"
        raise ValueError(f"expected col_idx within 0 to {block_columns - 1}, got {got}")


def block_prepare_reference(
    values: Tensor, row_ptr: Tensor, col_idx: Tensor, out_features: int, in_features: int
) -> tuple[Tensor, Tensor, Tensor]:
    """Canonical -> layout ``cpu``; see ``block_prepare``."""
    count, bn, bk = values.shape
    check_columns(row_ptr, col_idx, block_grid(out_features, in_features, bn, bk)[1])
    strip = strip_rows(bn)
    of_block = bn // strip  # strips of one row of blocks; each has the entries of that row
    strips = -(-out_features // strip)
    entries = row_ptr.diff().long().repeat_interleave(of_block)[:strips]
    pointers = row_pointers(entries)
    total = int(pointers[-1])
    strip_of = rows_of(pointers, total)
    within = torch.arange(total, device=values.device) - pointers[strip_of]
    block = row_ptr[strip_of // of_block] + within
    by_column = values.view(count, of_block, strip, bk).transpose(2, 3)
    laid_out = by_column[block, strip_of % of_block].contiguous()
    return laid_out, pointers, (col_idx[block] * bk).to(torch.int32)


def unprepare_block(
    values: Tensor, row_ptr: Tensor, col_idx: Tensor, rows: int, columns: int
) -> Tensor:
    """The dense weight [rows, columns] of prepared tensors."""
    total, bk, strip = values.shape
    dense = values.new_zeros((row_ptr.shape[0] - 1) * strip, -(-columns // bk) * bk)
    lanes = torch.arange(strip, device=values.device)
    row = (rows_of(row_ptr, total) * strip)[:, None, None] + lanes
    column = col_idx.long()[:, None] + torch.arange(bk, device=values.device)
    dense = dense.index_put((row.expand(-1, bk, -1), column[:, :, None].expand_as(values)), values)
    return dense[:rows, :columns].contiguous()
