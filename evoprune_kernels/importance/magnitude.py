"""Magnitude: a weight is as important as it is large; no state."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from evoprune_kernels.importance.base import Rule, magnitude_score


@dataclass(frozen=True)
class Magnitude(Rule):
    """``score = |w|``.

    Source:
        Han et al., "Learning both Weights and Connections for Efficient Neural Networks", NeurIPS 2015.

    Example:
        >>> import torch
        >>> from evoprune_kernels.importance import get_rule
        >>> get_rule("magnitude").score(None, torch.tensor([-2.0, 1.0]))
        tensor([2., 1.])
    """

    name: str = "magnitude"
    has_state: bool = False

    def score(self, importance: Tensor | None, weight: Tensor, **states: Tensor) -> Tensor:
        """``|weight|``."""
        return magnitude_score(weight)
