"""Evolution of weights: masks from the running average of the weights over training.

    evolution_threshold_2022   train; |w_T| > rate * std(average) per layer; retrain
                               average: square-root weights over the last ``window`` share of the steps
    evolution_llm_2024         train; |average| >= rate * std(|average|) per tensor; retrain
                               average: linear weights over all steps
    evolution_cubic            the same score under a cubic ramp while training (this package's own)

The scripts of 2022 average snapshots of the ends of epochs; here every step is averaged, inside the optimizer step:
the same weighted mean, sampled more finely. Their rate is scanned in steps of 0.1 until the target is passed; here it
is solved for.
"""

from __future__ import annotations

from torch import Tensor

from evoprune_kernels._check import check
from evoprune_kernels.methods.controls import choose_threshold, choose_top, weights
from evoprune_kernels.methods.job import Job, Run
from evoprune_kernels.methods.recipe import (
    Recipe,
    Stage,
    finetune_stage,
    needs_sparsity,
    train_stage,
)


def averaged(run: Run) -> dict[str, Tensor]:
    """The recorded averages of all prunable weights; ``ValueError`` names what was never stepped."""
    missing = [name for name in run.named_weights if name not in run.averages]
    check(not missing, f"no running average of {missing}: expected weights that get gradients")
    return run.averages


def window_start(steps: int, share: float) -> int:
    """The first step of the last ``share`` of ``steps``."""
    check(0.0 < share <= 1.0, f"expected 0 < window <= 1, got window={share}")
    return max(1, steps - round(share * steps) + 1)


def _threshold_2022(job: Job) -> list[Stage]:
    options = THRESHOLD_2022.options_of(job)
    needs_sparsity(job, THRESHOLD_2022.name)
    job.config(scope="global")  # unstructured only
    train = train_stage(
        job,
        importance="evolution",
        averaging=options["averaging"],
        average_from=window_start(job.steps, options["window"]),
    )

    def choose(run: Run) -> None:
        choose_threshold(run, weights(run), averaged(run))

    return [train, finetune_stage(job, choose)]


def _llm_2024(job: Job) -> list[Stage]:
    options = LLM_2024.options_of(job)
    needs_sparsity(job, LLM_2024.name)
    config = job.config()
    train = train_stage(job, importance="evolution", averaging=options["averaging"])

    def choose(run: Run) -> None:
        average = averaged(run)
        if config.pattern == "unstructured":
            choose_threshold(run, average, average, absolute=True, inclusive=True)
        else:
            choose_top(run, {name: x.abs() for name, x in average.items()}, config)

    return [train, finetune_stage(job, choose)]


THRESHOLD_2022 = Recipe(
    "evolution_threshold_2022",
    "Islam and Belhaouari, LOD 2022, scripts `02_*mean*` (E-sqrt)",
    _threshold_2022,
    {"averaging": "sqrt", "window": 0.5},
)
LLM_2024 = Recipe(
    "evolution_llm_2024",
    "Islam and Belhaouari, arXiv 2502.17071, notebooks of 2024",
    _llm_2024,
    {"averaging": "linear"},
)
RECIPES = [THRESHOLD_2022, LLM_2024]
