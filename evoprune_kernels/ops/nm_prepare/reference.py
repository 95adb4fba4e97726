"""``nm_prepare`` in plain torch, and its inverse. The drawing of the layout is in csrc/core/nm_layout.h."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.functional import pad

from evoprune_kernels.formats.nm import columns_of, packed_sizes, repeat_rows, unpack_indices

TILE = 16  # rows of a tile


def field_bits(m: int) -> int:
    """Bits of one index in the layout ``cpu``: what one permute instruction reads."""
    return 2 if m <= 4 else 4 if m <= 16 else 8


def prepared_sizes(rows: int, n: int, m: int, in_features: int) -> tuple[int, int, int]:
    """``(tiles, slots, words)``: row tiles, value slots a row (padded) and index words a row."""
    per_word = 32 // field_bits(m)
    kept, _ = packed_sizes(n, m, in_features)
    words = -(-kept // per_word)
    return -(-rows // TILE), words * per_word, words


def index_dtype(in_features: int, m: int) -> torch.dtype:
    """Of the columns of shared rows: int16 (read as unsigned) where it can hold every column, else int32."""
    return torch.int16 if in_features + m <= 1 << 16 else torch.int32


def by_tile(values: Tensor, slots: int) -> Tensor:
    """[N, kept] -> [tiles, slots, 16], padded with 0."""
    rows, kept = values.shape
    padded = pad(values, (0, slots - kept, 0, -rows % TILE))
    return padded.view(-(-rows // TILE), TILE, slots).transpose(1, 2).contiguous()


def nm_prepare_reference(
    values: Tensor, meta: Tensor, n: int, m: int, shared: int, in_features: int
) -> tuple[Tensor, Tensor]:
    """Canonical -> layout ``cpu``; see ``nm_prepare``."""
    rows, kept = values.shape
    if shared == TILE:
        columns = columns_of(meta, n, m, in_features)
        if bool((columns % m != unpack_indices(meta, kept, m)).any()):
            raise ValueError(f"meta holds an index of {m} or more, expected less than m = {m}")
        return by_tile(values, kept), columns.to(index_dtype(in_features, m))
    tiles, slots, words = prepared_sizes(rows, n, m, in_features)
    padding = (0, slots - kept, 0, tiles * TILE - rows)
    indices = unpack_indices(meta, kept, m)
    if bool((indices >= m).any()):
        raise ValueError(f"meta holds an index {int(indices.max())}, expected less than m = {m}")
    bits = field_bits(m)
    shifts = torch.arange(0, 32, bits, device=meta.device)
    fields = pad(indices, padding).view(tiles, TILE, words, 32 // bits)
    packed = (fields << shifts).sum(-1).to(torch.int32)  # [tiles, 16, words]
    return by_tile(values, slots), packed.transpose(1, 2).contiguous()


def unprepare(
    values: Tensor, meta: Tensor, rows: int, in_features: int, pattern: tuple[int, int, int]
) -> Tensor:
    """The dense weight [N, K] of prepared tensors."""
    n, m, shared = pattern
    kept, _ = packed_sizes(n, m, in_features)
    tiles, slots, _ = values.shape
    if shared == TILE:
        columns = repeat_rows(
            meta.long() & 0xFFFF if meta.dtype == torch.int16 else meta.long(), TILE, rows
        )
    else:
        bits = field_bits(m)
        shifts = torch.arange(0, 32, bits, device=meta.device)
        fields = meta.transpose(1, 2).unsqueeze(-1).long() >> shifts & (1 << bits) - 1
        indices = fields.reshape(tiles * TILE, slots)[:rows, :kept]
        columns = indices + torch.arange(kept, device=meta.device) // n * m
    stored = values.transpose(1, 2).reshape(tiles * TILE, slots)[:rows, :kept]
    dense = values.new_zeros(rows, -(-in_features // m) * m)
    return dense.scatter(1, columns, stored)[:, :in_features].contiguous()
