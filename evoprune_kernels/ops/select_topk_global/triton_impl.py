"""``select_topk_global`` in Triton: the kernels of ``select_topk`` over a list, launched a tensor at a time.

Nothing is concatenated: every tensor adds to the same totals. passes + 1 launches a tensor, so many small tensors are
bound by launching; tensors of several dtypes are ranked as float32.
"""

from __future__ import annotations

from torch import Tensor

from evoprune_kernels.ops.select_topk.triton_impl import keep_highest_triton, scores_unfit


def select_topk_global_unfit(scores: list[Tensor], density: float) -> str | None:
    """Why the kernels cannot run, or None."""
    if len({tensor.device for tensor in scores}) > 1:
        return f"takes tensors of one device, got {sorted({str(t.device) for t in scores})}"
    return scores_unfit(scores, density)


def select_topk_global_triton(scores: list[Tensor], density: float) -> list[Tensor]:
    """As ``select_topk_global_reference``."""
    return keep_highest_triton(scores, round(density * sum(t.numel() for t in scores)))
