"""Fisher: a weight is as important as the second-order change of the loss when it goes; no state of its own."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from evoprune_kernels.importance.base import Rule


@dataclass(frozen=True)
class Fisher(Rule):
    """``score = w^2 * v``, ``v`` the second moment that AdamW keeps anyway (``exp_avg_sq``).

    ``v`` averages ``g^2``, the diagonal of the empirical Fisher matrix. Its bias correction ``1 - beta2**step`` is one
    factor for all weights of as many steps: it is left out, since it cannot change their ranks.

    Source:
        LeCun et al., "Optimal Brain Damage", NeurIPS 1989, with the squared gradients of Theis et al., "Faster gaze
        prediction with dense networks and Fisher pruning", arXiv 1801.05787.

    Example:
        >>> import torch
        >>> from evoprune_kernels.importance import get_rule
        >>> get_rule("fisher").score(None, torch.tensor([2.0, -3.0]), exp_avg_sq=torch.tensor([1.0, 0.5]))
        tensor([4.0000, 4.5000])
    """

    name: str = "fisher"
    has_state: bool = False
    reads: tuple[str, ...] = ("exp_avg_sq",)

    def score(self, importance: Tensor | None, weight: Tensor, **states: Tensor) -> Tensor:
        """``weight**2 * exp_avg_sq``."""
        (square,) = self._named(states)
        return weight.detach().to(torch.float32).square() * square
