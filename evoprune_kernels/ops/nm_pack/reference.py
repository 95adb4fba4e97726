"""``nm_pack`` and ``nm_unpack`` in plain torch; the format's own code is the reference."""

from __future__ import annotations

from torch import Tensor

from evoprune_kernels.formats.nm import pack_nm, unpack_nm


def nm_pack_reference(weight: Tensor, mask: Tensor, n: int, m: int) -> tuple[Tensor, Tensor]:
    """Dense [N, K] and mask -> ``(values, meta)``; see ``nm_pack``."""
    return pack_nm(weight, mask, n, m)


def nm_unpack_reference(values: Tensor, meta: Tensor, n: int, m: int, in_features: int) -> Tensor:
    """``(values, meta)`` -> dense [N, K]; see ``nm_unpack``."""
    return unpack_nm(values, meta, n, m, in_features)
