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
"""

from __future__ import annotations

import math
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

    Attributes:
        name: what the ops and ``PruneConfig(importance=...)`` call it.
        has_state: whether the optimizer keeps an fp32 tensor of the weight's shape for it.
    """

    name: str
    has_state: bool

    def update(
        self, importance: Tensor, *, old: Tensor, new: Tensor, grad: Tensor, alpha: float
    ) -> None:
        """Advance the state in place by one optimizer step; the meaning that the kernels implement.

        Args:
            importance: fp32 state, changed in place.
            old: weight before the step.
            new: weight after the step and after the mask.
            grad: gradient, unscaled and after ``maximize``, before weight decay.
            alpha: share of this step in the average, from ``alpha``.
        """
        raise NotImplementedError

    def score(self, importance: Tensor | None, weight: Tensor) -> Tensor:
        """What selection ranks: fp32, the weight's shape, higher is kept."""
        raise NotImplementedError

    def _state(self, importance: Tensor | None) -> Tensor:
        if importance is None:
            raise ValueError(
                f"rule {self.name!r} scores its running average, got importance=None (no step was taken yet)"
            )
        return importance


def average_(state: Tensor, value: Tensor, alpha: float) -> None:
    """``state += alpha * (value - state)`` in place, in the state's dtype."""
    state.lerp_(value.to(state.dtype), alpha)


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
