"""The layout of ``w8a8_linear`` in plain torch, and its inverse. It is drawn in csrc/cpu/w8a8_linear.cpp."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.functional import pad

from evoprune_kernels.formats.block import row_pointers, rows_of
from evoprune_kernels.ops.nm_prepare.reference import TILE

LINE = 4  # columns of a line
WORD = 4  # lines of a word of 2-bit indices
Prepared = tuple[Tensor, Tensor, Tensor, Tensor]


def column_dtype(in_features: int) -> torch.dtype:
    """Of the columns that strips pick: int16 (read as unsigned) where it holds every column, else int32."""
    return torch.int16 if in_features <= 1 << 16 else torch.int32


def sum_rows(lines: Tensor, row_ptr: Tensor) -> Tensor:
    """int32 [strips * 16]: the sum of every row of the weight."""
    strips = row_ptr.shape[0] - 1
    sums = torch.zeros(strips, TILE, dtype=torch.int64, device=lines.device)
    of_entry = lines.sum((1, 3), dtype=torch.int64)
    return sums.index_add(0, rows_of(row_ptr, lines.shape[0]), of_entry).flatten().int()


def lines_of_strips(
    values: Tensor, row_ptr: Tensor, columns: Tensor, in_features: int, *, runs: bool
) -> Prepared:
    """Strips [entries, bk, 16] (csrc/cpu/strips.h) -> lines; ``columns`` [entries] is the first of each entry."""
    entries, bk, _ = values.shape
    if runs:
        lines = values.view(entries, bk // LINE, LINE, TILE).transpose(2, 3).contiguous()
        return lines, row_ptr, columns.int(), sum_rows(lines, row_ptr)
    strip = rows_of(row_ptr, entries)
    counts = row_ptr.diff().long() * bk  # columns of each strip
    pointers = row_pointers((counts + LINE - 1) // LINE)
    spread = torch.arange(bk, device=values.device)
    within = torch.arange(entries, device=values.device) - row_ptr[:-1].long()[strip]
    place = (pointers[:-1].long()[strip] * LINE + within * bk)[:, None] + spread
    column = columns.long()[:, None] + spread
    column = torch.where(column < in_features, column, 0)  # beyond the edge values are 0
    total = int(pointers[-1])
    single = values.new_zeros(total * LINE, TILE).index_put(
        (place.flatten(),), values.reshape(-1, TILE)
    )
    picked = column.new_zeros(total * LINE).index_put((place.flatten(),), column.flatten())
    lines = single.view(total, 1, LINE, TILE).transpose(2, 3).contiguous()
    picked = picked.to(column_dtype(in_features)).view(total, LINE)
    return lines, pointers, picked, sum_rows(lines, pointers)


def lines_of_rows(values: Tensor, meta: Tensor) -> Prepared:
    """Layout ``cpu`` of a 2:4 weight (csrc/core/nm_layout.h) -> lines and words of indices."""
    tiles, slots, _ = values.shape
    count = slots // LINE
    lines = values.view(tiles * count, 1, LINE, TILE).transpose(2, 3).contiguous()
    fields = meta[..., None].long() >> torch.arange(0, 32, 2, device=meta.device) & 3
    words = (fields << shifts(meta.device)).sum(-1).to(torch.int32).flatten(0, 1)
    pointers = torch.arange(tiles + 1, dtype=torch.int32, device=meta.device) * count
    return lines, pointers, words, sum_rows(lines, pointers)


def shifts(device: torch.device) -> Tensor:
    """Where slot ``4 j + i`` of a word of four lines has its index: bits 2j of byte i."""
    slot = torch.arange(WORD * LINE, device=device)
    return slot % LINE * 8 + slot // LINE * 2


def unprepare(prepared: Prepared, shape: tuple[int, int], picks: str) -> Tensor:
    """The dense int8 weight [N, K] of prepared tensors."""
    lines, row_ptr, columns, _ = prepared
    entries, per_entry = lines.shape[:2]
    strips, places = row_ptr.shape[0] - 1, torch.arange(per_entry * LINE, device=lines.device)
    strip = rows_of(row_ptr, entries)
    if picks == "run":
        column = (columns.long()[:, None] + places)[:, None, :]
    elif picks == "strip":
        wide = columns.long()
        column = (wide & 0xFFFF if columns.dtype == torch.int16 else wide)[:, None, :]
    else:
        index = columns[..., None].long() >> shifts(columns.device) & 3  # [words, 16, 16 slots]
        index = index.view(-1, TILE, WORD, LINE).transpose(1, 2).reshape(entries, TILE, LINE)
        line = torch.arange(entries, device=lines.device) - row_ptr[:-1].long()[strip]
        column = index + line[:, None, None] * 8 + places // 2 * 4
    values = lines.transpose(1, 2).reshape(entries, TILE, per_entry * LINE).long()
    row = (strip[:, None] * TILE + torch.arange(TILE, device=lines.device))[:, :, None]
    width = max(shape[1], int(column.max()) + 1 if column.numel() else 0)
    dense = values.new_zeros(strips * TILE, width)
    where = (row.expand_as(values), column.expand_as(values))
    dense = dense.index_put(where, values, accumulate=True)
    return pad(dense, (0, shape[1] - width))[: shape[0]].to(torch.int8)
