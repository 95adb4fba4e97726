"""Taylor: a weight is as important as the first-order change of the loss when it goes."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from evoprune_kernels.importance.base import Rule


@dataclass(frozen=True)
class Taylor(Rule):
    """``avg += alpha_t * (|w * g| - avg)``, ``score = avg``.

    ``w`` is the weight that the gradient ``g`` was computed at, before the step. A weight that a mask holds at zero has
    no first-order effect, so its average decays.

    Source:
        Molchanov et al., "Importance Estimation for Neural Network Pruning", CVPR 2019.

    Example:
        >>> import torch
        >>> from evoprune_kernels.importance import get_rule
        >>> rule, average, w = get_rule("taylor"), torch.zeros(2), torch.tensor([2.0, -1.0])
        >>> rule.update(average, weight=w, grad=torch.tensor([0.5, 3.0]), alpha=1.0)
        >>> rule.score(average, w)
        tensor([1., 3.])
    """

    name: str = "taylor"
    has_state: bool = True
    kernel: str = "taylor"
    default_point: str = "pre"
    uses_gradient: bool = True

    def value(self, weight: Tensor, grad: Tensor) -> Tensor:
        """``|weight * grad|``."""
        return (weight * grad).abs()

    def score(self, importance: Tensor | None, weight: Tensor, **states: Tensor) -> Tensor:
        """``importance``."""
        return self._importance(importance)
