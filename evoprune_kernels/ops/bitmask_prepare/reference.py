"""``bitmask_prepare`` in plain torch, and its inverse. The drawing of the layout is in csrc/cpu/strips.h."""

from __future__ import annotations

import torch
from torch import Tensor

from evoprune_kernels.formats.bitmask import unpack_bits
from evoprune_kernels.formats.block import rows_of

NARROW = 1 << 16  # up to this many columns an index takes 16 bits


def bitmask_prepare_reference(
    values: Tensor, bits: Tensor, row_ptr: Tensor, in_features: int
) -> tuple[Tensor, Tensor, Tensor]:
    """Canonical -> layout ``cpu``; see ``bitmask_prepare``."""
    mask = unpack_bits(bits, in_features)
    if not torch.equal(mask.sum(1), row_ptr.diff()) or int(row_ptr[0]) != 0:
        raise ValueError("bits do not keep as many entries in every row as row_ptr says")
    columns = mask.nonzero()[:, 1]
    if columns.shape[0] != values.shape[0]:
        raise ValueError(f"bits keep {columns.shape[0]} entries, values hold {values.shape[0]}")
    return values.clone(), columns.to(index_dtype(in_features)), row_ptr.clone()


def index_dtype(in_features: int) -> torch.dtype:
    """int16 (read as unsigned) where it can hold every column, else int32."""
    return torch.int16 if in_features <= NARROW else torch.int32


def unprepare_bitmask(values: Tensor, columns: Tensor, row_ptr: Tensor, in_features: int) -> Tensor:
    """The dense weight [N, K] of prepared tensors."""
    dense = values.new_zeros(row_ptr.shape[0] - 1, in_features)
    column = columns.long() & (NARROW - 1) if columns.dtype == torch.int16 else columns.long()
    return dense.index_put((rows_of(row_ptr, values.shape[0]), column), values)
