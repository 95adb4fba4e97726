"""``block_pack`` and ``block_unpack`` in plain torch; the meaning is in ``formats/block.py``."""

from __future__ import annotations

from torch import Tensor

from evoprune_kernels.formats.block import pack_block, unpack_block


def block_pack_reference(
    weight: Tensor, mask: Tensor, bn: int, bk: int
) -> tuple[Tensor, Tensor, Tensor]:
    """``(values, row_ptr, col_idx)``; see ``block_pack``."""
    return pack_block(weight, mask, bn, bk)


def block_unpack_reference(
    values: Tensor, row_ptr: Tensor, col_idx: Tensor, out_features: int, in_features: int
) -> Tensor:
    """The dense weight; see ``block_unpack``."""
    return unpack_block(values, row_ptr, col_idx, out_features, in_features)
