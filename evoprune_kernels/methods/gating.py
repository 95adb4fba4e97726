"""What the methods with gates share: putting gates in, two stages of training, both accuracies, taking channels out."""

from __future__ import annotations

from fnmatch import fnmatchcase
from typing import Any

import torch
from torch import Tensor, nn

from evoprune_kernels import nn as layers
from evoprune_kernels._check import check
from evoprune_kernels.methods.job import Job, Run
from evoprune_kernels.methods.recipe import Stage
from evoprune_kernels.nn.gate_placement import gates_behind_norms_, norms_behind, settle_gates_


def gated_layers(model: nn.Module) -> dict[str, layers.GatedConv2d]:
    """Every gated convolution by name, in the model's order."""
    return {n: m for n, m in model.named_modules() if isinstance(m, layers.GatedConv2d)}


def gate(run: Run, options: dict[str, Any], *, norms_needed: bool = False, **how: Any) -> None:
    """Gates into the convolutions that ``options["where"]`` names and the job does not exclude.

    ``ValueError`` if there is none, or (``norms_needed``) one without a batch norm behind it; the model is as it was.
    """
    globs, model = options["where"], run.model
    globs = [globs] if isinstance(globs, str) else globs
    named = dict(model.named_modules())
    for glob in globs or ():
        found = any(fnmatchcase(n, glob) for n, m in named.items() if isinstance(m, nn.Conv2d))
        check(found, f"where: no convolution of {type(model).__name__} matches {glob!r}")

    def chosen(name: str, conv: nn.Conv2d) -> bool:
        whole = name.split(".")
        parents = [".".join(whole[: i + 1]) for i in range(len(whole))]
        excluded = any(fnmatchcase(p, glob) for p in parents for glob in run.job.exclude)
        return not excluded and (globs is None or any(fnmatchcase(name, g) for g in globs))

    names = [n for n, m in named.items() if type(m) is nn.Conv2d and chosen(n, m)]
    check(bool(names), f"expected a model with convolutions to gate, got {type(model).__name__}")
    missing = norms_behind(model, names)[1] if norms_needed else {}
    check(not missing, f"expected a batch norm behind every gated convolution, got {missing}")
    with torch.random.fork_rng(devices=[]):  # dynamic gates draw their first weights
        torch.manual_seed(run.job.seed)
        layers.gate_model_(model, chosen, **how)
    if options["place"] == "norm":
        run.details["in_front_of_the_norm"] = gates_behind_norms_(model)


def gated_stages(job: Job, *, gate_lr: float = 1.0, **train: Any) -> list[Stage]:
    """``train`` with gates that learn or are fixed, and ``finetune`` under fixed ones."""

    def optimizer(lr: float | None) -> Any:
        def make(run: Run) -> Any:
            apart = dict.fromkeys(gate_parameters(run.model), gate_lr)
            return job.make_optimizer(run.model, job.config(importance="magnitude"), lr, apart)

        return make

    return [
        Stage("train", job.steps, optimizer(None), **train),
        Stage("finetune", job.finetune, optimizer(job.finetune_lr), best_from=0),
    ]


def gate_parameters(model: nn.Module) -> list[str]:
    """The names of all Parameters that belong to gates."""
    return [
        f"{name}.{own}"
        for name, module in model.named_modules()
        if isinstance(module, layers.ChannelGate)
        for own, _ in module.named_parameters(recurse=False)
    ]


class Statistics:
    """Counts gates over the last epoch of a stage, or over more where a part of an epoch is left at its end."""

    def __init__(self, steps: int) -> None:
        self.steps = steps

    def begin_epoch(self, run: Run) -> None:
        """Count from 0, unless less than an epoch like the one before follows."""
        before = run.numbers.get("counted_from", 0.0)
        if run.step + (run.step - before) <= self.steps:
            layers.reset_gate_statistics(run.model)
            run.numbers["counted_from"] = float(run.step)


def evaluate_both(run: Run) -> None:
    """``run.numbers``: what the network is worth with learned gates and with the frozen ones, on the validation data.

    ``polarization``: mean of gbar (1 - gbar) over the gates, gbar their open share of the validation samples.
    """
    model, job = run.model, run.job
    if job.validation is None:
        return
    gates = list(layers.gates_of(model).values())
    decisions = [g.decision for g in gates]
    counted = [(g.opened.clone(), g.seen.clone()) for g in gates]
    learned = bool(run.optimizer.param_groups) and "counted_from" in run.numbers
    model.eval()
    with torch.random.fork_rng(devices=[]):
        for key, value in job.evaluate(model, job.validation).items():
            run.numbers[f"static/{key}"] = float(value)
        if learned:
            for one in gates:
                one.unfreeze()
            with layers.collect_statistics(model):
                found = job.evaluate(model, job.validation)
            run.numbers |= {f"dynamic/{key}": float(value) for key, value in found.items()}
            shares = torch.cat(list(layers.gate_statistics(model).values()))
            run.numbers["polarization"] = float((shares * (1 - shares)).mean())
    for one, decision, (opened, seen) in zip(gates, decisions, counted, strict=True):
        one.decision = decision
        one.opened.copy_(opened)
        one.seen.copy_(seen)
    model.train()


@torch.no_grad()
def finish(run: Run) -> None:
    """Zero what is closed, remember its masks, and make the smaller model."""
    model = run.model
    settle_gates_(model)
    masks: dict[str, Tensor] = {}
    opened: dict[str, list[int]] = {}
    for name, layer in gated_layers(model).items():
        decision = layer.gate.decision
        assert decision is not None
        for parameter in (layer.weight, layer.bias):
            if parameter is not None:
                parameter[~decision] = 0.0
        shape = (-1, *[1] * (layer.weight.dim() - 1))
        masks[f"{name}.weight"] = decision.view(shape).expand_as(layer.weight).clone()
        opened[name] = [int(decision.sum()), decision.numel()]
    run.masks = masks
    run.details["open"] = opened
    try:
        small = layers.compact(model, _example(run))
    except (TypeError, ValueError, RuntimeError) as error:
        run.details["compaction"] = f"none: {error}"
        return
    run.compacted = small.model
    report = small.report
    before, after = connections(model), connections(small.model)
    run.details["compaction"] = {
        "connections": [before, after],
        "removed": 1.0 - after / before,
        "parameters": list(report.parameters),
        "flops": list(report.flops),
        "channels": {n: [total - gone, total] for n, (gone, total) in report.removed.items()},
        "kept": report.kept,
        "error": report.error,
    }


def connections(model: nn.Module) -> int:
    """Weights of all convolutions and linear layers."""
    found = [m for m in model.modules() if isinstance(m, nn.Conv2d | nn.Linear)]
    return sum(m.weight.numel() for m in found)


def _example(run: Run) -> Any:
    """The inputs of one training sample: FLOPs are of one."""
    batch = next(iter(run.job.train))
    inputs = batch[0] if isinstance(batch, tuple | list) else batch
    check(
        isinstance(inputs, Tensor), f"expected batches (inputs, ...), got {type(inputs).__name__}"
    )
    return inputs[:1]
