"""``PruneConfig``: what a param group is pruned to, by which importance, and when."""

from __future__ import annotations

import functools
import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from typing import Any

from evoprune_kernels._check import check
from evoprune_kernels.formats import parse_pattern
from evoprune_kernels.formats.base import NM, Pattern, Unstructured
from evoprune_kernels.importance import (
    RULES,
    alpha,
    get_rule,
    parse_averaging,
    platon_alpha,
    window_ends,
)
from evoprune_kernels.optim.schedule import kept_share, parse_ramp, refresh_due
from evoprune_kernels.selection import cosine_fraction

SCOPES = ("tensor", "global", "erk")
POINTS = ("", "pre", "post")
GROWTHS = ("random", "gradient", "momentum")
ROUNDINGS = ("nearest", "stochastic")


@dataclass(frozen=True)
class PruneConfig:
    """How the weights of a param group are pruned while they train.

    The masks are chosen at steps ``start``, ``start + every``, ... and ``end``, at the density that the ramp gives;
    between two choices the mask is applied inside the fused optimizer step, so pruned weights are exactly +0.0 after
    every step.

    Args:
        pattern: ``"n:m"``, ``"block:RxC"``, ``"unstructured"`` or ``"channel"``.
        sparsity: final share of zeros, 0 <= sparsity < 1. None only for ``n:m``, which fixes it to 1 - n/m, and for
            ``ramp="given"``.
        importance: the rule that scores a weight: ``"magnitude"`` |w|; ``"evolution"`` |running average of w| and
            ``"evolution_abs"`` running average of |w|; ``"taylor"`` running average of |w*g|; ``"movement"`` of -w*g;
            ``"platon"`` smoothed |w*g| times its uncertainty; ``"fisher"`` w^2 times Adam's second moment.
        averaging: weights of the running average: ``"linear"`` (alpha 2/(t+1)), ``"sqrt"``, ``"mean"`` (1/t; the sum
            of all steps ranks alike), ``"ewma"`` or ``"power:p"``.
        beta: decay of ``averaging="ewma"``, 0 <= beta < 1.
        average_from: the first step that is averaged; an average of the last L of T steps starts at T - L + 1.
        point: the weight that the rule sees: ``"pre"`` or ``"post"`` the step; ``""`` as the rule's source has it.
        window: ``"platon"``: steps that are averaged before sensitivity and uncertainty move; 1 is AdaLoRA's rule.
        sensitivity_beta: ``"platon"``: decay of the smoothed sensitivity.
        uncertainty_beta: ``"platon"``: decay of the uncertainty.
        start: first step (counted from 1) after which weights are pruned.
        end: the step at which the final sparsity is reached; None: at ``start``.
        every: steps between two choices of the masks.
        ramp: ``"cubic"`` or ``"linear"`` from dense at ``start`` to the final sparsity at ``end``; ``"constant"``
            final sparsity from ``start`` on; ``"one-shot"`` the same, and the masks are chosen only once;
            ``"step:n"`` n equal jumps; ``"given"`` masks come from ``optimizer.set_masks_`` only.
        freeze_at: the step after which masks no longer change and importance is no longer averaged. None: at ``end``
            where that is given (at ``start`` for ``"one-shot"``), otherwise never.
        transposed: whether weights are stored [in, out], as transformers' ``Conv1D`` does; the pattern then applies to
            the transposed weight, which is what a linear kernel sees.
        scope: ``"tensor"`` every tensor has the sparsity; ``"global"`` (``unstructured`` only) the group as a whole;
            ``"erk"`` the group as a whole, wide layers sparser than narrow ones (not for ``n:m``).
        grow: None: masks are chosen by importance. Otherwise they start at random and at every choice the active
            weights of smallest magnitude are exchanged for as many others: ``"random"`` (SET), those of largest
            ``"gradient"`` (RigL) or ``"momentum"`` (SNFS). Needs ``unstructured`` and a constant sparsity.
        drop_fraction: ``grow``: the share of the active weights that the first exchange drops, annealed by a cosine
            to 0 at the step where the masks freeze.
        sparse_decay: > 0 (SR-STE, 2e-4 there): weights outside the mask live on; they get ``sparse_decay * w`` added to
            their gradient instead of becoming zero. Run forward and backward within ``optimizer.masked()``.
        rounding: ``"stochastic"``: bfloat16 weights and moments are rounded up with the probability of what is cut
            off, so that small steps add up; ``"nearest"``.
        seed: of random masks, random growth and stochastic rounding.

    Raises:
        ValueError: if a value is out of range, or two of them contradict each other.

    Notes:
        Only steps with a learning rate other than 0 that a gradient scaler did not skip are counted. An n:m pattern
        ramps by groups: while the ramp runs, the groups that lose least obey n:m and the others stay dense.

    Source:
        Ramp: Zhu and Gupta, "To prune, or not to prune", 2017. ``"erk"`` and ``grow="gradient"``: Evci et al., "Rigging
        the Lottery", ICML 2020. ``"random"``: Mocanu et al., 2018. ``"momentum"``: Dettmers and Zettlemoyer, 2019.
        ``sparse_decay``: Zhou et al., "Learning N:M Fine-grained Structured Sparse Neural Networks", ICLR 2021.

    Example:
        >>> from evoprune_kernels import PruneConfig
        >>> config = PruneConfig("unstructured", sparsity=0.8, start=100, end=500, every=50)
        >>> config.kept(50), round(config.kept(300), 3), round(config.kept(500), 3)
        (1.0, 0.3, 0.2)
        >>> PruneConfig.from_dict(config.to_dict()) == config
        True
    """

    pattern: str = "2:4"
    sparsity: float | None = None
    importance: str = "evolution"
    averaging: str = "linear"
    beta: float = 0.99
    start: int = 0
    end: int | None = None
    every: int = 100
    ramp: str = "cubic"
    freeze_at: int | None = None
    scope: str = "tensor"
    transposed: bool = False
    average_from: int = 1
    point: str = ""
    window: int = 10
    sensitivity_beta: float = 0.85
    uncertainty_beta: float = 0.95
    grow: str | None = None
    drop_fraction: float = 0.3
    sparse_decay: float = 0.0
    rounding: str = "nearest"
    seed: int = 0

    def __post_init__(self) -> None:
        object.__setattr__(self, "pattern", str(self.parsed))
        self._check_sparsity()
        _check_choice("importance", self.importance, RULES)
        parse_averaging(self.averaging)
        parse_ramp(self.ramp)
        _check_choice("scope", self.scope, SCOPES)
        _check_choice("point", self.point, POINTS)
        _check_choice("rounding", self.rounding, ROUNDINGS)
        for name in ("beta", "sensitivity_beta", "uncertainty_beta"):
            value = getattr(self, name)
            check(0.0 <= value < 1.0, f"expected 0 <= {name} < 1, got {name}={value}")
        for name in ("average_from", "window"):
            check(getattr(self, name) >= 1, f"expected {name} >= 1, got {getattr(self, name)}")
        check(self.start >= 0, f"expected start >= 0, got start={self.start}")
        check(self.every >= 1, f"expected every >= 1, got every={self.every}")
        end, freeze = self.end, self.freeze_at
        check(
            end is None or end >= self.start,
            f"expected end >= start, got end={end}, start={self.start}",
        )
        check(
            freeze is None or freeze >= self.last,
            f"expected freeze_at >= {'start' if end is None else 'end'}, got freeze_at={freeze}, {self.last}:"
            " the final sparsity would not be reached",
        )
        check(
            self.scope != "global" or isinstance(self.parsed, Unstructured),
            f"scope='global' needs pattern 'unstructured', got {self.pattern!r}",
        )
        check(
            self.scope != "erk" or not isinstance(self.parsed, NM),
            f"scope='erk' needs a pattern of free density, got {self.pattern!r}",
        )
        self._check_growth()

    def _check_growth(self) -> None:
        check(
            0.0 <= self.sparse_decay < math.inf,
            f"expected sparse_decay >= 0, got sparse_decay={self.sparse_decay}",
        )
        if self.grow is None:
            return
        _check_choice("grow", self.grow, GROWTHS)
        check(
            isinstance(self.parsed, Unstructured) and self.ramp in ("constant", "given"),
            f"grow={self.grow!r} needs pattern 'unstructured' and ramp 'constant', got {self.pattern!r} and"
            f" {self.ramp!r}",
        )
        check(
            0.0 < self.drop_fraction <= 1.0,
            f"expected 0 < drop_fraction <= 1, got drop_fraction={self.drop_fraction}",
        )
        check(
            self.sparse_decay == 0,
            f"grow={self.grow!r} zeroes what it drops, so sparse_decay must be 0, got {self.sparse_decay}",
        )

    def _check_sparsity(self) -> None:
        pattern, sparsity = self.parsed, self.sparsity
        if isinstance(pattern, NM):
            fixed = 1 - pattern.n / pattern.m
            check(
                sparsity is None or abs(sparsity - fixed) < 1e-9,
                f"pattern {self.pattern!r} has the sparsity {fixed}, got sparsity={sparsity}",
            )
        elif sparsity is None:
            if self.ramp == "given":
                return
            raise ValueError(f"pattern {self.pattern!r} needs a sparsity, got None")
        else:
            check(0.0 <= sparsity < 1.0, f"expected 0 <= sparsity < 1, got sparsity={sparsity}")

    @property
    def parsed(self) -> Pattern:
        """The pattern as an object."""
        return parse_pattern(self.pattern)

    @property
    def density(self) -> float:
        """The share that is kept in the end."""
        pattern = self.parsed
        if isinstance(pattern, NM):
            return pattern.n / pattern.m
        return 1.0 if self.sparsity is None else 1.0 - self.sparsity

    @property
    def last(self) -> int:
        """The step at which the final sparsity is reached."""
        return self.start if self.end is None else self.end

    @property
    def frozen_after(self) -> int | None:
        """The step after which nothing changes any more, or None."""
        if self.freeze_at is not None:
            return max(self.freeze_at, 1)
        if self.ramp == "one-shot":
            return max(self.start, 1)
        return None if self.end is None else max(self.end, 1)

    def kept(self, t: int) -> float:
        """The share of the weights that is kept at step ``t``."""
        return kept_share(t, self.density, self.start, self.last, self.ramp)

    def due(self, t: int) -> bool:
        """Whether the masks are chosen anew after step ``t``."""
        return refresh_due(t, self.start, self.last, self.every, self.frozen_after, self.ramp)

    def frozen(self, t: int) -> bool:
        """Whether masks and importance stay as they are in step ``t``."""
        return self.frozen_after is not None and t > self.frozen_after

    def averages(self, t: int) -> bool:
        """Whether the importance moves in step ``t``."""
        rule = get_rule(self.importance)
        return rule.has_state and t >= self.average_from and not self.frozen(t)

    def alpha(self, t: int) -> float:
        """Weight of the newest observation in the running average of step ``t`` >= ``average_from``."""
        j = t - self.average_from + 1
        if get_rule(self.importance).states:  # a mean within each window
            return platon_alpha(j, self.window)
        return alpha(self.averaging, j, self.beta)

    def window_ends(self, t: int) -> bool:
        """Whether step ``t`` is the last of a window of ``"platon"``."""
        windowed = bool(get_rule(self.importance).states)
        return windowed and self.averages(t) and window_ends(t - self.average_from + 1, self.window)

    def dropped(self, t: int) -> float:
        """``grow``: the share of the active weights that is exchanged at step ``t``."""
        end = self.frozen_after
        if end is None:
            return self.drop_fraction
        first = min(self.start, end - 1)
        return cosine_fraction(max(t - first, 0), end - first, self.drop_fraction)

    def to_dict(self) -> dict[str, Any]:
        """The configuration as str, int, float and None: what a param group and a checkpoint hold."""
        return asdict(self)

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> PruneConfig:
        """The inverse of ``to_dict``; ``ValueError`` names unknown keys."""
        return _from_items(tuple(sorted(values.items())))

    @classmethod
    def coerce(cls, value: PruneConfig | Mapping[str, Any] | None) -> PruneConfig | None:
        """A configuration from what a param group may hold: one, its ``to_dict``, or None."""
        if value is None or isinstance(value, PruneConfig):
            return value
        if isinstance(value, Mapping):
            return cls.from_dict(value)
        raise TypeError(
            f"expected prune to be a PruneConfig or None, got {type(value).__name__}: {value!r}"
        )


@functools.lru_cache(maxsize=256)
def _from_items(items: tuple[tuple[str, Any], ...]) -> PruneConfig:
    known = {field.name for field in fields(PruneConfig)}
    unknown = [name for name, _ in items if name not in known]
    check(not unknown, f"unknown PruneConfig keys {unknown}: expected {sorted(known)}")
    return PruneConfig(**dict(items))


def _check_choice(name: str, value: str, allowed: Any) -> None:
    check(value in allowed, f"expected {name} in {tuple(allowed)}, got {value!r}")
