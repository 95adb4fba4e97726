"""Evolution: a weight is as important as the size of its running average over training."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from evoprune_kernels.importance.base import Rule, magnitude_score


@dataclass(frozen=True)
class Evolution(Rule):
    """``avg += alpha_t * (w_t - avg)``, ``score = |avg|``.

    ``w_t`` is the signed weight after the step and the mask: one that oscillates around zero averages out and scores
    low, one that a mask holds at zero decays towards zero.

    Source:
        The weight-evolution score of "Systematic Weight Evaluation for Pruning Large Language Models",
        arXiv 2502.17071 (``alpha_t = 2 / (t + 1)``).

    Example:
        >>> import torch
        >>> from evoprune_kernels.importance import alpha, get_rule
        >>> rule, average = get_rule("evolution"), torch.zeros(2)
        >>> for t, w in enumerate([[1.0, 1.0], [1.0, -1.0]], 1):
        ...     w = torch.tensor(w)
        ...     rule.update(average, weight=w, grad=w, alpha=alpha("mean", t))
        >>> rule.score(average, w)
        tensor([1., 0.])
    """

    name: str = "evolution"
    has_state: bool = True
    kernel: str = "evolution"

    def value(self, weight: Tensor, grad: Tensor) -> Tensor:
        """``weight``."""
        return weight

    def score(self, importance: Tensor | None, weight: Tensor, **states: Tensor) -> Tensor:
        """``|importance|``."""
        return magnitude_score(self._importance(importance))
