"""``nm_prepare_cuda`` in plain torch, and its inverse. The drawing of the layout is in csrc/core/nm_cuda_layout.h."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.functional import pad

from evoprune_kernels._check import check
from evoprune_kernels.formats import NM
from evoprune_kernels.formats.nm import repeat_rows

TILE = 64  # rows and columns of a tile
EMPTY = 0b01_00  # the nibble of a group that keeps nothing: indices 0 and 1

#: how the nibbles [rows64, columns64/4] split into axes (rows, columns), and the order of these axes in the words
#: 16-bit values: tile, two slabs, slab of 16 rows, 8 rows, row | tile, 32 columns, 16 columns, group
_SIXTEEN = ((2, 2, 2, 8), (2, 2, 4), (0, 5, 4, 2, 7, 6, 1, 3, 8))
#: 8-bit values: tile, slab of 16 rows, 8 rows, row | tile, 32 columns, group
_EIGHT = ((4, 2, 8), (2, 8), (0, 4, 3, 5, 2, 1, 6))


def tiles(rows: int, in_features: int) -> tuple[int, int]:
    """How many tiles of 64 x 64 cover the weight, down and across."""
    return -(-rows // TILE), -(-in_features // TILE)


def check_pattern(n: int, m: int, shared: int) -> None:
    """Raise ``ValueError`` unless the pattern is one that the tensor cores know."""
    check(
        (n, m) == (2, 4),
        f"the layout 'cuda' holds the patterns 2:4 and 2:4v16, got {NM(n, m, shared)}",
    )
    NM(n, m, shared)


def nm_prepare_cuda_reference(
    values: Tensor, meta: Tensor, n: int, m: int, shared: int, in_features: int
) -> tuple[Tensor, Tensor]:
    """Canonical -> layout ``cuda``; see ``nm_prepare_cuda``."""
    check_pattern(n, m, shared)
    rows, kept = values.shape
    down, across = tiles(rows, in_features)
    groups = kept // 2
    nibbles = torch.stack((meta & 15, meta >> 4), -1).flatten(1)[:, :groups]
    falling = nibbles & 3 >= nibbles >> 2
    if bool(falling.any()):
        row, group = falling.nonzero()[0].tolist()
        raise ValueError(f"meta of row {row}, group {group}: indices do not increase")
    nibbles = repeat_rows(nibbles.long(), shared, rows)
    missing = (0, across * 16 - groups, 0, down * TILE - rows)
    words = to_words(pad(nibbles, missing, value=EMPTY), values.dtype == torch.int8)
    return pad(values, (0, across * 32 - kept, *missing[2:])), words


def to_words(nibbles: Tensor, eight_bit: bool) -> Tensor:
    """Nibbles [rows64, columns64/4] -> meta int32 [rows64/64, columns64/64, 32, 4]."""
    rows, columns, order = _EIGHT if eight_bit else _SIXTEEN
    down, across = nibbles.shape[0] // TILE, nibbles.shape[1] * 4 // TILE
    split = nibbles.reshape(down, *rows, across, *columns).permute(order)
    shifts = torch.arange(0, 32, 4, device=nibbles.device)
    return (split.reshape(down, across, 32, 4, 8) << shifts).sum(-1).to(torch.int32)


def to_nibbles(meta: Tensor, eight_bit: bool) -> Tensor:
    """The inverse of ``to_words``."""
    rows, columns, order = _EIGHT if eight_bit else _SIXTEEN
    down, across = meta.shape[:2]
    axes = (down, *rows, across, *columns)
    shifts = torch.arange(0, 32, 4, device=meta.device)
    split = (meta.unsqueeze(-1) >> shifts & 15).reshape([axes[axis] for axis in order])
    inverse = [order.index(axis) for axis in range(len(order))]
    return split.permute(inverse).reshape(down * TILE, across * TILE // 4).long()


def unprepare_cuda(values: Tensor, meta: Tensor, out_features: int, in_features: int) -> Tensor:
    """The dense weight [N, K] of prepared tensors."""
    nibbles = to_nibbles(meta, values.dtype == torch.int8)
    first = torch.arange(0, nibbles.shape[1] * 4, 4, device=meta.device)
    columns = torch.stack(((nibbles & 3) + first, (nibbles >> 2) + first), -1).flatten(1)
    dense = values.new_zeros(values.shape[0], nibbles.shape[1] * 4)
    return dense.scatter(1, columns, values)[:out_features, :in_features].contiguous()
