"""The control arms: what any method has to beat at the same number of steps.

dense        no mask, the same extra steps
random       random masks, the same steps
magnitude_*  largest |w| once, after training; the layer budgets are uniform, erk, global, or those of the threshold
             ``rate * std(w)`` in every layer ("standard" pruning of the papers)
"""

from __future__ import annotations

from typing import Any

from torch import Tensor

from evoprune_kernels.methods.job import Job, Run
from evoprune_kernels.methods.recipe import (
    Recipe,
    Stage,
    finetune_stage,
    needs_sparsity,
    train_stage,
)
from evoprune_kernels.optim import PruneConfig
from evoprune_kernels.optim._selection import random_masks, select_group
from evoprune_kernels.selection import rate_for, select_threshold


def choose_top(run: Run, scores: dict[str, Tensor], config: PruneConfig) -> None:
    """Put into ``run.masks`` the masks of ``scores`` under the pattern, sparsity and scope of ``config``."""
    masks = select_group(config, list(scores.values()), config.density)
    run.masks = dict(zip(scores, masks, strict=True))


def choose_threshold(
    run: Run, ranked: dict[str, Tensor], spread_of: dict[str, Tensor], **how: Any
) -> None:
    """``mask = |ranked| > rate * std(spread_of)`` in every layer, at the rate that reaches the target."""
    names = list(ranked)
    first, second = [ranked[n] for n in names], [spread_of[n] for n in names]
    rate = rate_for(first, second, run.job.kept, **how)
    run.numbers["rate"] = rate
    pairs = zip(names, first, second, strict=True)
    run.masks = {name: select_threshold(r, s, rate, **how) for name, r, s in pairs}


def weights(run: Run) -> dict[str, Tensor]:
    """The prunable weights as they are, by name."""
    return {name: weight.detach() for name, weight in run.named_weights.items()}


def magnitudes(run: Run) -> dict[str, Tensor]:
    """``|w|`` in fp32 by name."""
    return {name: weight.float().abs() for name, weight in weights(run).items()}


def _dense(job: Job) -> list[Stage]:
    def optimizer(run: Run) -> Any:
        return job.make_optimizer(run.model, job.config(importance="magnitude"), job.finetune_lr)

    return [train_stage(job), Stage("finetune", job.finetune, optimizer, best_from=0)]


def _random(job: Job) -> list[Stage]:
    needs_sparsity(job, "random")
    config = job.config(scope=RANDOM.options_of(job)["scope"])

    def choose(run: Run) -> None:
        named = weights(run)
        shapes = [weight.shape for weight in named.values()]
        masks = random_masks(config, shapes, config.density)
        run.masks = dict(zip(named, masks, strict=True))

    return [train_stage(job), finetune_stage(job, choose)]


def _magnitude(name: str, scope: str) -> Recipe:
    def stages(job: Job) -> list[Stage]:
        needs_sparsity(job, name)
        config = job.config(scope=scope)
        return [
            train_stage(job),
            finetune_stage(job, lambda run: choose_top(run, magnitudes(run), config)),
        ]

    source = "Han et al., NeurIPS 2015, one shot"
    return Recipe(name, source, stages, {})


def _magnitude_std(job: Job) -> list[Stage]:
    needs_sparsity(job, "magnitude_std")
    job.config(scope="global")  # unstructured only: the threshold decides how much each layer keeps

    def choose(run: Run) -> None:
        choose_threshold(run, weights(run), weights(run), absolute=True)

    return [train_stage(job), finetune_stage(job, choose)]


DENSE = Recipe("dense", "the control: no mask, the same number of steps", _dense, {})
RANDOM = Recipe("random", "the control: random masks", _random, {"scope": "tensor"})
MAGNITUDE_STD = Recipe(
    "magnitude_std",
    "the standard rule of the 2022 scripts: |w| > rate * std(|w|) per layer",
    _magnitude_std,
    {},
)
RECIPES = [
    DENSE,
    RANDOM,
    MAGNITUDE_STD,
    _magnitude("magnitude_uniform", "tensor"),
    _magnitude("magnitude_global", "global"),
    _magnitude("magnitude_erk", "erk"),
]
