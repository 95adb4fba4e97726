"""Evolution of the size: a weight is as important as it was large over training, whatever its sign."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from evoprune_kernels.importance.base import Rule, magnitude_score


@dataclass(frozen=True)
class EvolutionAbs(Rule):
    """``avg += alpha_t * (|w_t| - avg)``, ``score = avg``.

    ``w_t`` is the weight after the step and the mask. Unlike "evolution", a weight that oscillates around zero keeps
    the size of its swings. With ``averaging="ewma"`` this is the exponential average of magnitudes.

    Source:
        The absolute variant of the weight-evolution score of "Systematic Weight Evaluation for Pruning Large Language
        Models", arXiv 2502.17071.

    Example:
        >>> import torch
        >>> from evoprune_kernels.importance import alpha, get_rule
        >>> rule, average = get_rule("evolution_abs"), torch.zeros(2)
        >>> for t, w in enumerate([[1.0, 1.0], [1.0, -1.0]], 1):
        ...     w = torch.tensor(w)
        ...     rule.update(average, weight=w, grad=w, alpha=alpha("mean", t))
        >>> rule.score(average, w)
        tensor([1., 1.])
    """

    name: str = "evolution_abs"
    has_state: bool = True
    kernel: str = "evolution_abs"

    def value(self, weight: Tensor, grad: Tensor) -> Tensor:
        """``|weight|``."""
        return weight.abs()

    def score(self, importance: Tensor | None, weight: Tensor, **states: Tensor) -> Tensor:
        """``importance``."""
        return magnitude_score(self._importance(importance))
