"""``select_topk_global`` in plain torch: the truth, the fallback and the benchmark baseline."""

from __future__ import annotations

import torch
from torch import Tensor

from evoprune_kernels.ops._rank import keep_highest


def select_topk_global_reference(scores: list[Tensor], density: float) -> list[Tensor]:
    """Keep the ``round(density * entries)`` highest entries of all tensors; see ``select_topk_global``."""
    if not scores:
        return []
    flat = torch.cat([s.reshape(-1).float() for s in scores])
    kept = keep_highest(flat, round(density * flat.numel()))
    pieces = kept.split([s.numel() for s in scores])
    # clones: the results of an op share no memory
    return [piece.clone().view(s.shape) for piece, s in zip(pieces, scores, strict=True)]
