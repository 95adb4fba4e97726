"""``nm_select_pack`` in plain torch: the three ops that it does at once."""

from __future__ import annotations

import torch
from torch import Tensor

from evoprune_kernels.formats.nm import pack_nm
from evoprune_kernels.ops.nm_prepare_cuda.reference import nm_prepare_cuda_reference
from evoprune_kernels.ops.select_nm.reference import select_nm_reference


def nm_select_pack_reference(
    weight: Tensor, scores: Tensor, n: int, m: int
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Weight and scores -> ``(values, meta, cuda_values, cuda_meta)``; see ``nm_select_pack``."""
    values, meta = pack_nm(weight, select_nm_reference(scores, n, m), n, m)
    if (n, m) != (2, 4):
        empty = values.new_empty(0, 0), meta.new_empty(0, 0, 32, 4, dtype=torch.int32)
        return values, meta, *empty
    return values, meta, *nm_prepare_cuda_reference(values, meta, n, m, 1, weight.shape[1])
