"""Methods that prune while they train: one optimizer, masks chosen by a schedule, then a frozen rest.

::

    step     0 ....... start ................ steps ............... steps + finetune
    masks    none      density falls          frozen
    rigl     random at the first step, exchanged every ``every`` steps until ``steps``
    sr_ste   chosen anew after every step until ``steps``; pruned weights live on and decay
"""

from __future__ import annotations

from typing import Any

from evoprune_kernels._check import check
from evoprune_kernels.formats import parse_pattern
from evoprune_kernels.formats.base import NM, Unstructured
from evoprune_kernels.methods.job import Job, Run
from evoprune_kernels.methods.recipe import Recipe, Stage, needs_sparsity
from evoprune_kernels.optim._selection import random_masks


def _one_stage(job: Job, name: str, config: dict[str, Any], **actions: Any) -> list[Stage]:
    """Both budgets of steps under one optimizer, whose masks are final after ``job.steps``."""
    needs_sparsity(job, name)
    prune = job.config(**config)

    def optimizer(run: Run) -> Any:
        return job.make_optimizer(run.model, prune)

    actions = {"end": Run.read_masks, **actions}
    total = job.steps + job.finetune
    return [Stage("train", total, optimizer, best_from=job.steps, **actions)]


def _ramp(name: str, source: str, importance: str, **defaults: Any) -> Recipe:
    """A cubic ramp from a tenth of ``job.steps`` on, by one importance rule."""
    options = {"start": 0.1, "every": 0.01, "ramp": "cubic", "scope": "tensor", **defaults}

    def stages(job: Job) -> list[Stage]:
        chosen = recipe.options_of(job)
        for key in ("start", "every"):
            check(0.0 <= chosen[key] <= 1.0, f"expected 0 <= {key} <= 1, got {chosen[key]}")
        scope = chosen["scope"]
        if not isinstance(parse_pattern(job.pattern), Unstructured) and scope == "global":
            scope = "tensor"  # patterns have their budget in every tensor
        config = {
            **chosen,
            "importance": importance,
            "scope": scope,
            "start": max(1, round(chosen["start"] * job.steps)),
            "every": max(1, round(chosen["every"] * job.steps)),
            "end": job.steps,
        }
        return _one_stage(job, name, config)

    recipe = Recipe(name, source, stages, options)
    return recipe


def _regrowth(name: str, source: str, grow: str) -> Recipe:
    options = {"every": 0.02, "drop_fraction": 0.3, "scope": "erk"}

    def stages(job: Job) -> list[Stage]:
        chosen = recipe.options_of(job)
        check(0.0 < chosen["every"] <= 1.0, f"expected 0 < every <= 1, got {chosen['every']}")
        every = max(1, round(chosen["every"] * job.steps))
        config = {
            "importance": "magnitude",
            "ramp": "constant",
            "grow": grow,
            "drop_fraction": chosen["drop_fraction"],
            "scope": chosen["scope"],
            "start": every,
            "every": every,
            "end": job.steps,
        }

        def begin(run: Run) -> None:
            prune, named = job.config(**config), run.named_weights
            shapes = [weight.shape for weight in named.values()]
            masks = random_masks(prune, shapes, prune.density)
            run.install(dict(zip(named, masks, strict=True)))

        return _one_stage(job, name, config, begin=begin)

    recipe = Recipe(name, source, stages, options)
    return recipe


def _sr_ste(job: Job) -> list[Stage]:
    chosen = SR_STE.options_of(job)
    pattern = parse_pattern(job.pattern)
    check(isinstance(pattern, NM), f"method 'sr_ste' needs a pattern n:m, got {job.pattern!r}")
    config = {
        "importance": "magnitude",
        "ramp": "constant",
        "start": 1,
        "every": chosen["every"],
        "end": job.steps,
        "sparse_decay": chosen["sparse_decay"],
    }

    def end(run: Run) -> None:
        run.read_masks()
        run.optimizer.apply_masks_()

    def around(run: Run) -> Any:
        return run.optimizer.masked()

    return _one_stage(job, "sr_ste", config, end=end, around=around)


SR_STE = Recipe(
    "sr_ste",
    "Zhou et al., ICLR 2021, arXiv 2102.04010",
    _sr_ste,
    {"sparse_decay": 2e-4, "every": 1},
)
RECIPES = [
    _ramp("magnitude_cubic", "Zhu and Gupta, arXiv 1710.01878", "magnitude"),
    _ramp("evolution_cubic", "this package: the evolution score under a cubic ramp", "evolution"),
    _ramp(
        "platon", "Zhang et al., ICML 2022, arXiv 2206.12562", "platon",
        scope="global", window=10, sensitivity_beta=0.85, uncertainty_beta=0.95, point="post",
    ),
    _ramp(
        "movement", "Sanh et al., NeurIPS 2020, arXiv 2005.07683 (accumulated)", "movement",
        averaging="mean",
    ),
    _ramp("taylor", "Molchanov et al., CVPR 2019", "taylor", averaging="mean", scope="global"),
    _ramp("adam_fisher", "diagonal Fisher by Adam's second moment", "fisher", scope="global"),
    _regrowth("set", "Mocanu et al., Nature Communications 2018", "random"),
    _regrowth("rigl", "Evci et al., ICML 2020, arXiv 1911.11134", "gradient"),
    _regrowth("snfs", "Dettmers and Zettlemoyer, arXiv 1907.04840", "momentum"),
    SR_STE,
]  # fmt: skip
