"""ssProp as a preset: dense forward, a backward for some channels only, by a schedule over the steps.

::

    kept = 1 while step < warmup, else ramp(step)      every convolution and linear layer; nothing is pruned
    "bar"      kept, then final from the middle on     "cosine"   from kept to final
    "linear"   from kept to final                      interleave: so many dense steps, then as many sparse ones

The network that comes out is dense and of plain layers: what is saved is work of the backward.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from torch import nn

from evoprune_kernels import nn as layers
from evoprune_kernels._check import check
from evoprune_kernels.methods.job import Job, Run
from evoprune_kernels.methods.recipe import Recipe, Stage
from evoprune_kernels.nn.packed import adopt
from evoprune_kernels.nn.ssprop import SSPropLayer
from evoprune_kernels.nn.ssprop_schedule import SSPropRamp
from evoprune_kernels.nn.swap import paths, replace


def _ramp(job: Job) -> SSPropRamp:
    """The schedule over all steps; ``total`` is their number unless a ``period`` is given."""
    chosen = SSPROP.options_of(job)
    total = None
    if chosen["ramp"] != "constant" and chosen["period"] is None:
        total = job.steps + job.finetune
    return SSPropRamp(
        chosen["kept"], chosen["ramp"], chosen["final"], total, chosen["period"], chosen["warmup"], chosen["interleave"]
    )  # fmt: skip


def _ssprop(job: Job) -> list[Stage]:
    ramp = _ramp(job)
    check(
        job.sparsity is None,
        f"method 'ssprop' prunes nothing: expected sparsity=None, got {job.sparsity}",
    )

    def optimizer(lr: float | None) -> Callable[[Run], Any]:
        return lambda run: job.make_optimizer(run.model, job.config(importance="magnitude"), lr)

    @contextmanager
    def around(run: Run) -> Iterator[None]:
        kept = ramp.at(run.total)
        for name, layer in _layers(run.model).items():
            layer.kept = kept
            # a resumed run draws what an unbroken one would
            layer.draws = int(run.numbers.get(f"draws/{name}", layer.draws))
        yield

    def after_step(run: Run) -> None:
        for name, layer in _layers(run.model).items():
            if layer.random:
                run.numbers[f"draws/{name}"] = float(layer.draws)
        total = run.numbers.get("kept_sum", 0.0) + ramp.at(run.total - 1)
        run.numbers["kept_sum"], run.numbers["kept_mean"] = total, total / run.total

    both: dict[str, Any] = {"after_step": after_step, "around": around}
    return [
        Stage("train", job.steps, optimizer(None), **both),
        Stage("finetune", job.finetune, optimizer(job.finetune_lr), best_from=0, **both),
    ]


def _layers(model: nn.Module) -> dict[str, SSPropLayer]:
    return {n: m for n, m in model.named_modules() if isinstance(m, SSPropLayer)}


def _prepare(run: Run) -> None:
    chosen = SSPROP.options_of(run.job)
    report = layers.ssprop_model_(
        run.model,
        chosen["kept"],
        exclude=run.job.exclude,
        weight_only=chosen["weight_only"],
        random=chosen["random"],
        seed=run.job.seed,
    )
    check(bool(report.swapped), f"expected a layer that ssProp can take, got {report.skipped}")
    run.details["ssprop"] = {"swapped": report.swapped, "skipped": report.skipped}


def _finish(run: Run) -> None:
    """Plain layers again, with the same Parameters."""
    where = paths(run.model)
    for layer in _layers(run.model).values():
        names = where[id(layer)]
        cls: type[nn.Module] = nn.Conv2d if isinstance(layer, nn.Conv2d) else nn.Linear
        plain = cls.__new__(cls)
        adopt(plain, layer)
        for own in ("_kept", "weight_only", "random", "seed", "number", "draws"):
            plain.__dict__.pop(own, None)
        for name in names:
            replace(run.model, name, plain)


SSPROP = Recipe(
    "ssprop",
    "Zhong et al., ssProp, arXiv 2408.12561",
    _ssprop,
    {
        "kept": 0.2, "ramp": "constant", "final": None, "period": None, "warmup": 0, "interleave": 0,
        "weight_only": False, "random": False,
    },
    _prepare,
    _finish,
)  # fmt: skip
RECIPES = [SSPROP]
