"""``nm_prepare`` in plain torch, and its inverse. The drawing of the layout is in csrc/cpu/nm_layout.h."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.functional import pad

from evoprune_kernels.formats.nm import packed_sizes, unpack_indices

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


def nm_prepare_reference(
    values: Tensor, meta: Tensor, n: int, m: int, in_features: int
) -> tuple[Tensor, Tensor]:
    """Canonical -> layout ``cpu``; see ``nm_prepare``."""
    rows, kept = values.shape
    tiles, slots, words = prepared_sizes(rows, n, m, in_features)
    padding = (0, slots - kept, 0, tiles * TILE - rows)
    indices = unpack_indices(meta, kept, m)
    if bool((indices >= m).any()):
        raise ValueError(f"meta holds an index {int(indices.max())}, expected less than m = {m}")
    bits = field_bits(m)
    shifts = torch.arange(0, 32, bits, device=meta.device)
    fields = pad(indices, padding).view(tiles, TILE, words, 32 // bits)
    packed = (fields << shifts).sum(-1).to(torch.int32)  # [tiles, 16, words]
    by_slot = pad(values, padding).view(tiles, TILE, slots)
    return by_slot.transpose(1, 2).contiguous(), packed.transpose(1, 2).contiguous()


def unprepare(
    values: Tensor, meta: Tensor, rows: int, in_features: int, pattern: tuple[int, int]
) -> Tensor:
    """The dense weight [N, K] of prepared tensors."""
    n, m = pattern
    kept, _ = packed_sizes(n, m, in_features)
    bits = field_bits(m)
    shifts = torch.arange(0, 32, bits, device=meta.device)
    tiles, slots, _ = values.shape
    fields = meta.transpose(1, 2).unsqueeze(-1).long() >> shifts & (1 << bits) - 1
    indices = fields.reshape(tiles * TILE, slots)[:rows, :kept]
    columns = indices + torch.arange(kept, device=meta.device) // n * m
    stored = values.transpose(1, 2).reshape(tiles * TILE, slots)[:rows, :kept]
    dense = values.new_zeros(rows, -(-in_features // m) * m)
    return dense.scatter(1, columns, stored)[:, :in_features].contiguous()
