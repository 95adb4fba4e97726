"""How many channels ssProp keeps, as a function of the step ``t`` (0 first), and the object that tells the layers.

::

    constant   kept
    linear     from kept to final with t / (total - 1)
    cosine     final + (kept - final) / 2 * (1 + cos(pi * t / (total - 1)))
    bar        kept while t < total // 2, then final

With ``period`` T for ``total`` the ramp repeats: linear with ``(t mod T) / T``, bar with ``t mod T < T // 2``, cosine
with ``t / T`` (it falls over one period and rises over the next). A step is whatever the caller counts: an epoch with
``total`` epochs, an iteration with a ``period`` of some.
Source: ssProp, arXiv 2408.12561.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

from torch import nn

from evoprune_kernels._check import check
from evoprune_kernels.nn.ssprop import SSPropLayer, check_kept

RAMPS = ("constant", "linear", "cosine", "bar")


@dataclass(frozen=True)
class SSPropRamp:
    """The share of channels that the backward keeps at step ``t``.

    ``1 while t < warmup or in a dense stretch of interleave, else ramp(t)``

    Args:
        kept: share at t = 0, in (0, 1].
        ramp: one of ``RAMPS``.
        final: share at the end, in (0, 1]; for ``constant`` it is not used, for the others it is needed.
        total: number of steps; past it the last share stays. Not for ``constant``.
        period: in place of ``total``: the ramp repeats.
        warmup: so many dense steps first; ``t`` is not shifted by them.
        interleave: after the warm-up, so many dense steps alternate with as many sparse ones, dense first; 0: never.
            1 (or True) alternates epochs if a step is an epoch, ``len(loader)`` does if it is an iteration.

    Raises:
        ValueError: for a share outside (0, 1], an unknown ramp, or lengths that do not fit the ramp.

    Example:
        >>> from evoprune_kernels.nn.ssprop_schedule import SSPropRamp
        >>> ramp = SSPropRamp(1.0, "linear", final=0.2, total=5)
        >>> [round(ramp.at(t), 2) for t in range(7)]
        [1.0, 0.8, 0.6, 0.4, 0.2, 0.2, 0.2]
        >>> [SSPropRamp(0.2, interleave=1).at(t) for t in range(4)]
        [1.0, 0.2, 1.0, 0.2]
    """

    kept: float = 0.2
    ramp: str = "constant"
    final: float | None = None
    total: int | None = None
    period: int | None = None
    warmup: int = 0
    interleave: int = 0

    def __post_init__(self) -> None:
        check_kept(self.kept)
        check(self.ramp in RAMPS, f"expected ramp in {RAMPS}, got {self.ramp!r}")
        if self.final is not None:
            check_kept(self.final, "final")
        for name in ("warmup", "interleave"):
            check(getattr(self, name) >= 0, f"expected {name} >= 0, got {getattr(self, name)}")
        given = (self.total, self.period)
        if self.ramp == "constant":
            check(
                given == (None, None) and self.final is None,
                f"ramp 'constant' takes no final, total or period, got {self.final}, {self.total}, {self.period}",
            )
            return
        check(self.final is not None, f"ramp {self.ramp!r} needs final, the share at its end")
        check(
            given.count(None) == 1,
            f"ramp {self.ramp!r} needs either total or period, got total={self.total}, period={self.period}",
        )
        steps = self.total if self.period is None else self.period
        check(steps is not None and steps >= 1, f"expected total or period >= 1, got {steps}")

    def at(self, t: int) -> float:
        """The share at step ``t`` >= 0."""
        check(t >= 0, f"expected t >= 0, got {t}")
        if t < self.warmup:
            return 1.0
        if self.interleave and (t - self.warmup) // self.interleave % 2 == 0:
            return 1.0
        if self.ramp == "constant" or self.final is None:
            return self.kept
        if self.ramp == "bar":
            early = self._phase(t) < (self.period or self.total or 1) // 2
            return self.kept if early else self.final
        if self.ramp == "linear":
            done = self._progress(self._phase(t))
            return self.kept * (1 - done) + self.final * done  # exact at both ends
        wave = t if self.period else self._phase(t)
        return self.final + 0.5 * (self.kept - self.final) * (
            1 + math.cos(math.pi * self._progress(wave))
        )

    def _phase(self, t: int) -> int:
        if self.period:
            return t % self.period
        assert self.total is not None
        return min(t, self.total - 1)

    def _progress(self, phase: int) -> float:
        if self.period:
            return phase / self.period
        assert self.total is not None
        return phase / max(1, self.total - 1)


class SSPropSchedule:
    """Sets ``kept`` of every ssProp layer of a model, step by step, as a learning-rate scheduler does.

    ``layer.kept = SSPropRamp(...).at(t)`` for all layers; ``t`` = calls of ``step()``

    Args:
        model: its ``SSPropConv2d`` and ``SSPropLinear`` layers follow the schedule, from now on at t = 0.
        kept, ramp, final, total, period, warmup, interleave: see ``SSPropRamp``.

    Raises:
        ValueError: as ``SSPropRamp``, or if the model has no ssProp layer.

    Notes:
        ``state_dict`` holds the step, the settings and how often each layer drew random channels, so that a resumed run
        draws what an unbroken one would. Under ``torch.compile`` each new share compiles anew: prefer ``constant``,
        ``bar`` and ``interleave`` there.

    Example:
        >>> import torch
        >>> from evoprune_kernels.nn import SSPropSchedule, ssprop_model_
        >>> model = torch.nn.Sequential(torch.nn.Linear(4, 10), torch.nn.ReLU(), torch.nn.Linear(10, 10))
        >>> report = ssprop_model_(model)
        >>> schedule = SSPropSchedule(model, kept=0.2, interleave=1)
        >>> for epoch in range(3):
        ...     print(schedule.kept, model[0].kept)  # train the epoch here
        ...     schedule.step()
        1.0 1.0
        0.2 0.2
        1.0 1.0
    """

    def __init__(
        self,
        model: nn.Module,
        kept: float = 0.2,
        ramp: str = "constant",
        *,
        final: float | None = None,
        total: int | None = None,
        period: int | None = None,
        warmup: int = 0,
        interleave: int = 0,
    ) -> None:
        self.ramp = SSPropRamp(kept, ramp, final, total, period, warmup, int(interleave))
        self.layers = {n: m for n, m in model.named_modules() if isinstance(m, SSPropLayer)}
        check(
            bool(self.layers),
            f"{type(model).__name__} has no ssProp layer: call ssprop_model_ first",
        )
        self.t = 0
        self._apply()

    @property
    def kept(self) -> float:
        """The share that the layers have now."""
        return self.ramp.at(self.t)

    def step(self) -> None:
        """One step further; call it where ``lr_scheduler.step()`` is called."""
        self.t += 1
        self._apply()

    def _apply(self) -> None:
        for layer in self.layers.values():
            layer.kept = self.kept

    def state_dict(self) -> dict[str, Any]:
        """Step, settings and the random draws of each layer: numbers and strings only."""
        draws = {name: layer.draws for name, layer in self.layers.items()}
        return {"t": self.t, "ramp": asdict(self.ramp), "draws": draws}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Continue where ``state`` was taken, with its settings, and set the layers' shares.

        Raises:
            ValueError: if its layers are not those of this model, or its settings are not valid; nothing is changed.
        """
        ramp, draws, t = SSPropRamp(**state["ramp"]), dict(state["draws"]), int(state["t"])
        check(
            set(draws) == set(self.layers),
            f"expected the state of layers {sorted(self.layers)}, got {sorted(draws)}",
        )
        check(t >= 0, f"expected t >= 0, got {t}")
        self.ramp, self.t = ramp, t
        for name, layer in self.layers.items():
            layer.draws = draws[name]
        self._apply()
