"""``select_topk`` in plain torch: the truth, the fallback and the benchmark baseline."""

from __future__ import annotations

from torch import Tensor

from evoprune_kernels.ops._rank import keep_highest


def select_topk_reference(scores: Tensor, density: float) -> Tensor:
    """Keep the ``round(density * numel)`` highest entries; see ``select_topk``."""
    return keep_highest(scores.float(), round(density * scores.numel()))
