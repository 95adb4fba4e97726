"""Whole channels by gates: the consensus sub-network, and its control arms.

::

    consensus_gates   train with gates:  loss + polar * R_polar + budget * R_act     (polar rises linearly in the steps)
                      last epoch: share of samples for which each gate is open -> more than half: open for good
                      finetune under that decision; closed channels leave the model (``Result.compacted``)
    random_gates      the same share of each layer, at random, closed from the first step
    bn_polarization   loss + strength * R(scales of the batch norms); the smallest scales close at the end of ``steps``

``sparsity`` is what shall go of the gated layers' own weights (or FLOPs); a closed channel takes with it what the next
layer makes of it. With gates on the inner convolutions of residual blocks alone (``where="*.conv1"``) the share that
goes of the whole blocks is the same. The record says what went of the whole model.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from evoprune_kernels import nn as layers
from evoprune_kernels._check import check
from evoprune_kernels.methods.gating import (
    Statistics,
    evaluate_both,
    finish,
    gate,
    gated_layers,
    gated_stages,
)
from evoprune_kernels.methods.job import Job, Run
from evoprune_kernels.methods.recipe import Recipe, Stage
from evoprune_kernels.nn.conv import COUNTED, channel_cost
from evoprune_kernels.nn.gate_placement import norms_behind
from evoprune_kernels.nn.gates import STE
from evoprune_kernels.selection import random_scores

#: where the gates are, for all methods of this file
COMMON: dict[str, Any] = {"where": None, "place": "norm"}
PLACES = ("norm", "conv")


def _common(job: Job, recipe: Recipe) -> dict[str, Any]:
    """The options of a job, checked as far as they are common to all methods."""
    options = recipe.options_of(job)
    check(job.sparsity is not None, f"method {recipe.name!r} needs a sparsity, got None")
    check(
        job.pattern in ("unstructured", "channel"),
        f"method {recipe.name!r} removes channels: expected no pattern or 'channel', got {job.pattern!r}",
    )
    job.config()  # a sparsity in range
    check(options["place"] in PLACES, f"expected place in {PLACES}, got place={options['place']!r}")
    return options


def _positive(options: Mapping[str, Any], *names: str) -> None:
    for name in names:
        check(options[name] > 0, f"expected {name} > 0, got {name}={options[name]}")


# ---- consensus gates ----
def _consensus(job: Job) -> list[Stage]:
    options = _common(job, CONSENSUS)
    _positive(options, "gate_lr", "budget", "hidden")
    for name in ("polar_start", "polar"):
        check(options[name] >= 0, f"expected {name} >= 0, got {name}={options[name]}")
    check(options["by"] in COUNTED, f"expected by in {COUNTED}, got by={options['by']!r}")
    check(options["ste"] in STE, f"expected ste in {STE}, got ste={options['ste']!r}")

    def penalty(run: Run) -> Tensor:
        done = run.step / job.steps
        strength = options["polar_start"] + (options["polar"] - options["polar_start"]) * done
        budget = layers.budget_loss(run.model, 1.0 - (job.sparsity or 0.0), options["by"])
        return strength * layers.polarization_loss(run.model) + options["budget"] * budget

    statistics = Statistics(job.steps)

    def decide(run: Run) -> None:
        shares = torch.cat(list(layers.gate_statistics(run.model).values()))
        run.numbers["polarization_last_epoch"] = float((shares * (1 - shares)).mean())
        layers.freeze_gates(run.model)
        evaluate_both(run)

    return gated_stages(
        job, penalty=penalty, begin_epoch=statistics.begin_epoch, end=decide, gate_lr=options["gate_lr"]
    )  # fmt: skip


def _prepare_consensus(run: Run) -> None:
    options = CONSENSUS.options_of(run.job)
    names = ("dynamic", "hidden", "ste", "gate_init")
    gate(run, options, **{name: options[name] for name in names})


# ---- control: random gates ----
def _random(job: Job) -> list[Stage]:
    _common(job, RANDOM)
    return gated_stages(job, end=evaluate_both)


def _prepare_random(run: Run) -> None:
    gate(run, RANDOM.options_of(run.job))
    for number, layer in enumerate(gated_layers(run.model).values()):
        channels = layer.gate.channels
        scores = random_scores((channels,), seed=run.job.seed, tensor=number)
        count = max(1, round((1.0 - (run.job.sparsity or 0.0)) * channels))
        order = scores.sort(descending=True, stable=True).indices
        decision = torch.zeros(channels, dtype=torch.bool)
        decision[order[:count]] = True
        layer.gate.freeze(decision)


# ---- control: polarized scales of batch norms ----
def _bn(job: Job) -> list[Stage]:
    options = _common(job, BN)
    _positive(options, "strength")
    check(options["t"] >= 0, f"expected t >= 0, got t={options['t']}")
    check(options["by"] in COUNTED, f"expected by in {COUNTED}, got by={options['by']!r}")

    def penalty(run: Run) -> Tensor:
        strength: float = options["strength"]
        return strength * layers.bn_polarization(_norms(run), options["t"])

    def after_step(run: Run) -> None:
        if run.step <= job.steps:
            layers.clamp_bn_scales_(_norms(run))

    def decide(run: Run) -> None:
        _close_smallest(run, options["by"])
        evaluate_both(run)

    return gated_stages(job, penalty=penalty, after_step=after_step, end=decide)


def _norms(run: Run) -> nn.ModuleList:
    """The batch norms behind the gated convolutions."""
    return nn.ModuleList(run.model.get_submodule(name) for name in run.details["norms"].values())


def _prepare_bn(run: Run) -> None:
    gate(run, BN.options_of(run.job), norms_needed=True)
    run.details["norms"], _ = norms_behind(run.model, list(gated_layers(run.model)))
    for layer in gated_layers(run.model).values():
        layer.gate.freeze(torch.ones(layer.gate.channels, dtype=torch.bool))


def _close_smallest(run: Run, by: str) -> None:
    """Close channels by their norm's ``|scale|``, the smallest first, until their cost is ``sparsity`` of all."""
    behind = run.details["norms"]
    sizes, costs, owners = [], [], []
    for number, (name, layer) in enumerate(gated_layers(run.model).items()):
        scale = run.model.get_submodule(behind[name]).weight.detach().abs().float().cpu()  # type: ignore[union-attr,operator]
        sizes.append(scale)
        costs.append(torch.full_like(scale, channel_cost(layer, by), dtype=torch.float64))
        owners.append(torch.full_like(scale, number, dtype=torch.int64))
    size, cost, owner = torch.cat(sizes), torch.cat(costs), torch.cat(owners)
    goal = (run.job.sparsity or 0.0) * float(cost.sum())
    keep = torch.ones_like(size, dtype=torch.bool)
    left = [len(s) for s in sizes]
    gone = 0.0
    # of equal ones the highest index goes first: the lowest wins
    for i in size.flip(0).sort(stable=True).indices.tolist():
        channel = len(size) - 1 - i
        if gone >= goal:
            break
        if left[int(owner[channel])] == 1:  # a layer keeps one channel
            continue
        keep[channel] = False
        left[int(owner[channel])] -= 1
        gone += float(cost[channel])
    parts = keep.split([len(s) for s in sizes])
    for layer, part in zip(gated_layers(run.model).values(), parts, strict=True):
        layer.gate.freeze(part)


CONSENSUS = Recipe(
    "consensus_gates",
    "Zhi et al., arXiv 2302.10798; the losses are this package's reading of it",
    _consensus,
    {
        **COMMON, "dynamic": False, "hidden": 16, "ste": "sigmoid", "gate_init": 2.0, "gate_lr": 10.0,
        "polar_start": 0.1, "polar": 1.0, "budget": 1.0, "by": "parameters",
    },
    _prepare_consensus,
    finish,
)  # fmt: skip
RANDOM = Recipe(
    "random_gates",
    "the control: random channels, closed from the start",
    _random,
    dict(COMMON),
    _prepare_random,
    finish,
)
BN = Recipe(
    "bn_polarization",
    "Zhuang et al., NeurIPS 2020, with the smallest scales closed to the wanted sparsity",
    _bn,
    {**COMMON, "strength": 1e-4, "t": 1.4, "by": "parameters"},
    _prepare_bn,
    finish,
)
RECIPES = [CONSENSUS, RANDOM, BN]
