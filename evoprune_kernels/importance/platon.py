"""PLATON: a weight is important when the loss is sensitive to it, or when we cannot be sure that it is not.

::

    steps      | 1 .. window | window + 1 .. 2 window | ..       counted from the first step that is averaged
    each step    I = mean of |w g| in the window so far           the fused op: rule "taylor", point "post",
                                                                  alpha = platon_alpha(t, window)
    window's end sensitivity, uncertainty                         Platon.finish_window_, where window_ends(t, window)

The end of a window is plain torch (``torch._foreach``, four passes) and no kernel: it moves 44 bytes a weight, but once
in ``window`` steps. In ten steps that is 4.4 bytes a step, beside the 36 that the fused AdamW step moves.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from evoprune_kernels._check import check
from evoprune_kernels.importance.base import Rule

#: steps of a window, as in the paper
WINDOW = 10


@dataclass(frozen=True)
class Platon(Rule):
    """``score = sensitivity * uncertainty``, both smoothed over windows of steps.

    ``S = beta1 * S + (1 - beta1) * I``; ``U = beta2 * U + (1 - beta2) * |I - S|`` with the new ``S``;
    ``I`` the mean of ``|w * g|`` in a window, ``w`` after the step.

    Before the first window ends every score is 0: choose masks after that. A window of one step gives the smoothed
    sensitivity and uncertainty of AdaLoRA (arXiv 2303.10512). S and U start at zero and are not corrected for it, as in
    the paper.

    Source:
        Zhang et al., "PLATON: Pruning Large Transformer Models with Upper Confidence Bound of Weight Importance",
        ICML 2022, arXiv 2206.12562.

    Example:
        >>> import torch
        >>> from evoprune_kernels.importance import Platon, platon_alpha, window_ends
        >>> rule, w = Platon(), torch.tensor([1.0, 2.0])
        >>> importance, sensitivity, uncertainty = (torch.zeros(2) for _ in range(3))
        >>> for t in (1, 2):
        ...     rule.update(importance, weight=w, grad=torch.ones(2), alpha=platon_alpha(t, window=2))
        >>> window_ends(2, window=2)
        True
        >>> rule.finish_window_([importance], [sensitivity], [uncertainty], beta1=0.5, beta2=0.5)
        >>> rule.score(importance, w, sensitivity=sensitivity, uncertainty=uncertainty)
        tensor([0.1250, 0.5000])
    """

    name: str = "platon"
    has_state: bool = True
    kernel: str = "taylor"
    uses_gradient: bool = True
    states: tuple[str, ...] = ("sensitivity", "uncertainty")

    def value(self, weight: Tensor, grad: Tensor) -> Tensor:
        """``|weight * grad|``."""
        return (weight * grad).abs()

    def score(self, importance: Tensor | None, weight: Tensor, **states: Tensor) -> Tensor:
        """``sensitivity * uncertainty``; the importance, a window that may not be full, is not used."""
        sensitivity, uncertainty = self._named(states)
        return sensitivity * uncertainty

    @torch.no_grad()
    def finish_window_(
        self,
        importances: Sequence[Tensor],
        sensitivities: Sequence[Tensor],
        uncertainties: Sequence[Tensor],
        beta1: float = 0.85,
        beta2: float = 0.95,
    ) -> None:
        """Take a full window into sensitivities and uncertainties, in place; importances stay.

        ``S += (1 - beta1) * (I - S)``; ``U += (1 - beta2) * (|I - S| - U)``

        Args:
            importances: the means of the window, one tensor a parameter.
            sensitivities: S of every parameter, of its importance's shape and dtype.
            uncertainties: U of every parameter, likewise.
            beta1: decay of the sensitivities, 0 to 1.
            beta2: decay of the uncertainties, 0 to 1.

        Raises:
            ValueError: if the lists differ in length, two shapes do not match, or a beta is out of range.
        """
        count = len(importances)
        for name, tensors in (("sensitivities", sensitivities), ("uncertainties", uncertainties)):
            check(len(tensors) == count, f"expected {count} {name}, got {len(tensors)}")
            for i, (t, importance) in enumerate(zip(tensors, importances, strict=True)):
                check(
                    t.shape == importance.shape and t.dtype == importance.dtype,
                    f"{name}[{i}] is {tuple(t.shape)} of {t.dtype}, its importance"
                    f" {tuple(importance.shape)} of {importance.dtype}",
                )
        for name, beta in (("beta1", beta1), ("beta2", beta2)):
            check(0 <= beta <= 1, f"expected 0 <= {name} <= 1, got {beta}")
        if count == 0:
            return
        means, smooth, spread = list(importances), list(sensitivities), list(uncertainties)
        torch._foreach_lerp_(smooth, means, 1 - beta1)
        deviations = torch._foreach_sub(means, smooth)
        torch._foreach_abs_(deviations)
        torch._foreach_lerp_(spread, deviations, 1 - beta2)


def platon_alpha(t: int, window: int = WINDOW) -> float:
    """Share of the ``t``-th step in the mean of its window: 1, 1/2, .. 1/window, 1, ..

    ``alpha = 1 / ((t - 1) mod window + 1)``

    Args:
        t: number of the step among those that are averaged, from 1.
        window: steps of a window.

    Raises:
        ValueError: if ``t`` or ``window`` is below 1.

    Example:
        >>> from evoprune_kernels.importance import platon_alpha
        >>> [platon_alpha(t, window=2) for t in (1, 2, 3)]
        [1.0, 0.5, 1.0]
    """
    return 1.0 / _place(t, window)


def window_ends(t: int, window: int = WINDOW) -> bool:
    """Whether a window is full after the ``t``-th step that is averaged; arguments and errors of ``platon_alpha``."""
    return _place(t, window) == window


def _place(t: int, window: int) -> int:
    """The number of a step in its window, from 1."""
    check(t >= 1 and window >= 1, f"expected t >= 1 and window >= 1, got {t} and {window}")
    return (t - 1) % window + 1
