"""``bitmask_pack`` and ``bitmask_unpack`` in plain torch; the meaning is in ``formats/bitmask.py``."""

from __future__ import annotations

from torch import Tensor

from evoprune_kernels.formats.bitmask import pack_bitmask, unpack_bitmask


def bitmask_pack_reference(weight: Tensor, mask: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """``(values, bits, row_ptr)``; see ``bitmask_pack``."""
    return pack_bitmask(weight, mask)


def bitmask_unpack_reference(
    values: Tensor, bits: Tensor, row_ptr: Tensor, in_features: int
) -> Tensor:
    """The dense weight; see ``bitmask_unpack``."""
    return unpack_bitmask(values, bits, in_features)
