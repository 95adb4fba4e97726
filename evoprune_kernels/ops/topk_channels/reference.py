"""``topk_channels`` in plain torch: the truth, the fallback and the benchmark baseline."""

from __future__ import annotations

from torch import Tensor

from evoprune_kernels.ops._rank import ordered_keys


def topk_channels_reference(scores: Tensor, k: int) -> Tensor:
    """Indices of the ``k`` highest scores of each row, ascending; see ``topk_channels``."""
    ranked = ordered_keys(scores.float()).sort(dim=-1, descending=True, stable=True).indices
    return ranked[..., :k].sort(-1).values
