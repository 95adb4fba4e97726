"""Movement: a weight is important when training takes it away from zero."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from evoprune_kernels.importance.base import Rule


@dataclass(frozen=True)
class Movement(Rule):
    """``avg += alpha_t * (-w * g - avg)``, ``score = avg``.

    ``-g`` is where a step of plain gradient descent goes: ``-w * g > 0`` where that is away from zero. ``w`` is the
    weight that the gradient was computed at, before the step. The paper accumulates ``-sum w * g``, which ranks as the
    averaging "mean" does.

    Source:
        Sanh et al., "Movement Pruning: Adaptive Sparsity by Fine-Tuning", NeurIPS 2020, arXiv 2005.07683.

    Example:
        >>> import torch
        >>> from evoprune_kernels.importance import get_rule
        >>> rule, average, w = get_rule("movement"), torch.zeros(2), torch.tensor([2.0, -1.0])
        >>> rule.update(average, weight=w, grad=torch.tensor([0.5, 3.0]), alpha=1.0)
        >>> rule.score(average, w)
        tensor([-1.,  3.])
    """

    name: str = "movement"
    has_state: bool = True
    kernel: str = "movement"
    default_point: str = "pre"
    uses_gradient: bool = True

    def value(self, weight: Tensor, grad: Tensor) -> Tensor:
        """``-weight * grad``."""
        return -(weight * grad)

    def score(self, importance: Tensor | None, weight: Tensor, **states: Tensor) -> Tensor:
        """``importance``."""
        return self._importance(importance)
