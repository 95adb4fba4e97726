"""What an importance rule is, and the host-side schedules ``alpha_t`` of its running average.

Every average of a sequence ``x_1, x_2, ...`` with positive weights is the same recursion, so one kernel serves all::

    avg_t = avg_{t-1} + alpha_t * (x_t - avg_{t-1}),      alpha_t = weight_t / (weight_1 + ... + weight_t)

    averaging   weight_j     alpha_t                       remembers
    linear      j            2 / (t + 1)                   all, late steps more (the authors' rule)
    mean        1            1 / t                         all alike
    sqrt        sqrt(j)      sqrt(t) / sum_j sqrt(j)       all, late steps a little more
    power:p     j**p         t**p / sum_j j**p             p = 0 mean, 0.5 sqrt, 1 linear
    ewma        beta**-j     (1 - beta) / (1 - beta**t)    about 1 / (1 - beta) steps

``alpha_1`` is exactly 1: the first value replaces whatever the state held, so no bias has to be corrected later.
An accumulated sum is the averaging "mean": ``sum_t = t * mean_t`` for every weight alike, so the ranking is the same.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from evoprune_kernels._check import check

#: names of the running averages; "power" takes its exponent after a colon, as "power:2"
AVERAGINGS = ("linear", "sqrt", "mean", "ewma", "power")

#: exponent -> (t, sum of j**exponent for j = 1..t): the next step adds one term
_power_sums: dict[float, tuple[int, float]] = {}


@dataclass(frozen=True)
class Rule:
    """How the importance of a weight is computed: an optional running average, and a score from it.

    Where the average looks (``point``)::

        pre    the weight as stored before the step: where the gradient was computed
        post   a rule of the weight alone: the weight as stored, after the step, the mask and the rounding
               a rule with a gradient: the updated weight, rounded as stored, but before the mask zeroes it, or else a
               masked weight could never become important again (a hook after a dense step sees the same)

    Attributes:
        name: what ``PruneConfig(importance=...)`` calls it.
        has_state: whether the optimizer keeps an fp32 tensor of the weight's shape for it, the *importance*.
        kernel: the rule that the fused step advances (``ops.adamw_step_(rule=...)``), ``"none"`` without a state.
        default_point: ``"pre"`` or ``"post"``.
        uses_gradient: whether the average is of something with the gradient in it.
        states: names of more fp32 tensors of the weight's shape that the rule keeps, zero at first.
        reads: names of the optimizer's own states that the score needs.
    """

    name: str
    has_state: bool
    kernel: str = "none"
    default_point: str = "post"
    uses_gradient: bool = False
    states: tuple[str, ...] = ()
    reads: tuple[str, ...] = ()

    def value(self, weight: Tensor, grad: Tensor) -> Tensor:
        """What the running average averages; the meaning that the kernels implement.

        Args:
            weight: the weight at the rule's point.
            grad: gradient, unscaled and after ``maximize``, before any weight decay; of the dtype of ``weight``.
        """
        raise NotImplementedError

    def update(self, importance: Tensor, *, weight: Tensor, grad: Tensor, alpha: float) -> None:
        """``importance += alpha * (value(weight, grad) - importance)``, in place; nothing without a state.

        Args:
            importance: fp32 or fp64 state; the arithmetic is in its dtype.
            weight: the weight at the rule's point.
            grad: as in ``value``.
            alpha: share of this step in the average, from ``alpha``.
        """
        if self.has_state:
            dtype = importance.dtype
            importance.lerp_(self.value(weight.to(dtype), grad.to(dtype)), alpha)

    def score(self, importance: Tensor | None, weight: Tensor, **states: Tensor) -> Tensor:
        """What selection ranks: fp32, the weight's shape, higher is kept.

        Args:
            importance: the running average, None for a rule without a state.
            weight: the weight now.
            states: what ``states`` and ``reads`` name; more is ignored.

        Raises:
            ValueError: if the importance or a state that the rule needs is missing.
        """
        raise NotImplementedError

    def _importance(self, importance: Tensor | None) -> Tensor:
        if importance is None:
            raise ValueError(
                f"rule {self.name!r} scores its running average, got importance=None (no step was taken yet)"
            )
        return importance.detach()

    def _named(self, states: Mapping[str, Tensor]) -> list[Tensor]:
        """The tensors of ``states`` and ``reads``, in fp32."""
        names = (*self.states, *self.reads)
        missing = [name for name in names if name not in states]
        if missing:
            raise ValueError(f"rule {self.name!r} scores {names}, got {tuple(sorted(states))}")
        return [states[name].detach().to(torch.float32) for name in names]


def parse_averaging(averaging: str) -> tuple[str, float]:
    """``"power:2"`` -> ``("power", 2.0)``; the exponent of the others is that of their weights.

    Raises:
        ValueError: if the text names no averaging, or the exponent is not a number >= 0.
    """
    name, colon, exponent = averaging.partition(":")
    check(
        name in AVERAGINGS and bool(colon) == (name == "power"),
        f"expected averaging in {AVERAGINGS} (power as 'power:2'), got {averaging!r}",
    )
    if name != "power":
        return name, {"linear": 1.0, "sqrt": 0.5}.get(name, 0.0)
    try:
        value = float(exponent)
    except ValueError:
        value = math.nan
    check(0 <= value < math.inf, f"expected an exponent >= 0 in averaging, got {averaging!r}")
    return name, value


def alpha(averaging: str, t: int, beta: float = 0.99) -> float:
    """Share of the ``t``-th value in a running average.

    ``alpha_t = weight_t / (weight_1 + ... + weight_t)``

    Args:
        averaging: "linear", "sqrt", "mean", "ewma" or "power:p".
        t: number of the value, from 1 (steps).
        beta: decay of "ewma", 0 <= beta < 1; the others do not use it.

    Returns:
        A fraction in (0, 1]; exactly 1 for ``t = 1``.

    Raises:
        ValueError: if the averaging is unknown, ``t < 1`` or ``beta`` is out of range.

    Notes:
        On the host in double precision. "ewma" is the bias-corrected average, with the correction inside alpha.
        "sqrt" and "power:p" remember the last sum, so a step costs one term; the result depends on ``t`` only.

    Source:
        Linear: the weighted mean of the authors' library; the unifying recursion: West, "Updating Mean and
        Variance Estimates: An Improved Method", CACM 1979.

    Example:
        >>> from evoprune_kernels.importance import alpha
        >>> [alpha("linear", t) for t in (1, 2, 3)]
        [1.0, 0.6666666666666666, 0.5]
    """
    name, exponent = parse_averaging(averaging)
    check(t >= 1, f"expected t >= 1, got {t}")
    if name == "linear":
        return 2.0 / (t + 1)
    if name == "mean":
        return 1.0 / t
    if name == "ewma":
        check(0 <= beta < 1, f"expected 0 <= beta < 1, got {beta}")
        if t == 1 or beta == 0:
            return 1.0
        # expm1 and log keep the digits that 1 - beta**t loses for beta close to 1
        return (1.0 - beta) / -math.expm1(t * math.log(beta))
    return float(t) ** exponent / _power_sum(exponent, t)


def averaged_step(t: int, start: int = 1) -> int:
    """Number of step ``t`` in an average whose first value is that of step ``start``; 0 before: nothing to average.

    ``max(t - start + 1, 0)``, the ``t`` of ``alpha``. The average over the last L of T steps starts at ``T - L + 1``.

    Example:
        >>> from evoprune_kernels.importance import averaged_step
        >>> [averaged_step(t, start=3) for t in (1, 2, 3, 4)]
        [0, 0, 1, 2]
    """
    check(t >= 1 and start >= 1, f"expected t >= 1 and start >= 1, got {t} and {start}")
    return max(t - start + 1, 0)


def _power_sum(exponent: float, t: int) -> float:
    last, total = _power_sums.get(exponent, (0, 0.0))
    if last > t:
        last, total = 0, 0.0
    for j in range(last + 1, t + 1):
        total += float(j) ** exponent
    _power_sums[exponent] = (t, total)
    return total


def magnitude_score(value: Tensor) -> Tensor:
    """``|value|`` in fp32."""
    return value.detach().to(torch.float32).abs()
