"""One-shot methods that look at calibration data: after training, the first batches of the training set.

    wanda       |w| * norm of the input, the best of every output row, or of every group of n:m
    sparsegpt   the second-order solution, which also moves the weights that stay
    ecoflap     layer budgets by how much the loss moves with each layer, then Wanda inside each

``finetune`` steps under the masks follow; with ``finetune=0`` the result is the published one-shot result.
"""

from __future__ import annotations

from itertools import islice
from typing import Any

from torch import nn

from evoprune_kernels._check import check
from evoprune_kernels.formats import NM, parse_pattern
from evoprune_kernels.formats.base import Unstructured
from evoprune_kernels.methods.job import Batch, Job, Run
from evoprune_kernels.methods.recipe import (
    Action,
    Recipe,
    Stage,
    finetune_stage,
    needs_sparsity,
    train_stage,
)
from evoprune_kernels.selection import ecoflap_budgets, sparsegpt_, wanda_masks


def calibration(run: Run, batches: int) -> dict[str, Any]:
    """What the selections need: ``batches`` batches of the first epoch, and how to run the model on one."""
    check(batches >= 1, f"expected batches >= 1, got batches={batches}")
    train: Any = run.job.train
    if hasattr(train, "set_epoch"):
        train.set_epoch(0)

    def forward(model: nn.Module, batch: Batch) -> None:
        run.job.loss(model, batch)

    data = list(islice(iter(train), batches))
    return {"batches": data, "forward": forward, "exclude": run.job.exclude}


def _target(job: Job, method: str) -> dict[str, Any]:
    needs_sparsity(job, method)
    pattern = parse_pattern(job.pattern)
    check(
        isinstance(pattern, NM | Unstructured),
        f"method {method!r} needs the pattern 'unstructured' or n:m, got {job.pattern!r}",
    )
    return {"pattern": job.pattern} if isinstance(pattern, NM) else {"kept": job.kept}


def _stages(job: Job, choose: Action) -> list[Stage]:
    return [train_stage(job), finetune_stage(job, choose)]


def _wanda(job: Job) -> list[Stage]:
    options, target = WANDA.options_of(job), _target(job, "wanda")

    def choose(run: Run) -> None:
        data = calibration(run, options["batches"])
        run.masks = wanda_masks(run.model, compare=options["compare"], **target, **data)

    return _stages(job, choose)


def _sparsegpt(job: Job) -> list[Stage]:
    options, target = SPARSEGPT.options_of(job), _target(job, "sparsegpt")

    def choose(run: Run) -> None:
        data = calibration(run, options["batches"])
        run.masks = sparsegpt_(run.model, damping=options["damping"], **target, **data)

    return _stages(job, choose)


def _ecoflap(job: Job) -> list[Stage]:
    options, target = ECOFLAP.options_of(job), _target(job, "ecoflap")
    check(
        "kept" in target,
        f"method 'ecoflap' gives layers budgets of their own, got the pattern {job.pattern!r}",
    )

    def choose(run: Run) -> None:
        data = calibration(run, options["batches"])
        budgets = ecoflap_budgets(
            run.model, data["batches"], job.loss, job.kept, floor_kept=options["floor_kept"],
            order=options["order"], eps=options["eps"], seed=job.seed, exclude=job.exclude,
        )  # fmt: skip
        run.numbers |= {f"kept/{name}": share for name, share in budgets.items()}
        run.masks = wanda_masks(run.model, compare="tensor", kept=budgets, **data)

    return _stages(job, choose)


WANDA = Recipe("wanda", "Sun et al., arXiv 2306.11695", _wanda, {"batches": 8, "compare": "row"})
SPARSEGPT = Recipe(
    "sparsegpt",
    "Frantar and Alistarh, arXiv 2301.00774",
    _sparsegpt,
    {"batches": 8, "damping": 0.01},
)
ECOFLAP = Recipe(
    "ecoflap",
    "Sung et al., ICLR 2024, arXiv 2310.02998",
    _ecoflap,
    {"batches": 8, "floor_kept": None, "order": "zeroth", "eps": 1e-3},
)
RECIPES = [WANDA, SPARSEGPT, ECOFLAP]
