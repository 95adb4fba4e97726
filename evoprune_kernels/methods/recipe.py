"""What a recipe is: stages of training, and what happens between them.

::

    stage       | train                 | finetune            |      one optimizer each
    steps       0 ................ steps 0 ......... finetune
    begin             ^ nothing               ^ choose masks, install them
    after_step        (every step)            (every step)
    end                              ^ remember averages    ^ remember masks

Around the stages a recipe may change the model's layers: ``prepare`` before the first, ``finish`` behind the last.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from evoprune_kernels._check import check
from evoprune_kernels.methods.job import Job, Run

Action = Callable[[Run], None]


def nothing(run: Run) -> None:
    """Do nothing."""


def no_penalty(run: Run) -> Tensor | None:
    """Train on the job's loss alone."""
    return None


def plainly(run: Run) -> AbstractContextManager[None]:
    """Run forward and backward on the weights as they are."""
    return nullcontext()


@dataclass(frozen=True)
class Stage:
    """Steps with one optimizer.

    Attributes:
        name: for progress, logs and the record.
        steps: how many optimizer steps; 0 runs ``begin`` and ``end`` only.
        optimizer: makes the optimizer, also when a run resumes within the stage: it must not change the model.
        begin: once, before the first step.
        after_step: after every step; ``run.step`` counts it already.
        end: once, after the last step.
        around: what forward and backward run within.
        penalty: what is added to the loss, after the forward of a step; None adds nothing.
        begin_epoch: before the first batch of every epoch; ``run.step`` is the number of steps before it.
        best_from: the step from which the best state on the validation data may be kept, or None.
        averaging: for dense training that other runs may share: how it averages; None for any other stage.
    """

    name: str
    steps: int
    optimizer: Callable[[Run], Any]
    begin: Action = nothing
    after_step: Action = nothing
    end: Action = nothing
    around: Callable[[Run], AbstractContextManager[None]] = plainly
    penalty: Callable[[Run], Tensor | None] = no_penalty
    begin_epoch: Action = nothing
    best_from: int | None = None
    averaging: dict[str, Any] | None = None


@dataclass(frozen=True)
class Recipe:
    """A method by name.

    Attributes:
        name: what ``methods.run`` calls it.
        source: paper and section.
        stages: of a job; raises ``ValueError`` for a job that the method cannot do.
        options: the method's own settings with their defaults.
        prepare: changes layers before the first stage, also when a run resumes, before the state is loaded; raises
            ``ValueError`` with the model unchanged.
        finish: once, after the last stage, on the state that the run ends with.
    """

    name: str
    source: str
    stages: Callable[[Job], list[Stage]]
    options: dict[str, Any]
    prepare: Action = nothing
    finish: Action = nothing

    def options_of(self, job: Job) -> dict[str, Any]:
        """The defaults, overridden by the job's options; ``ValueError`` for one that the method does not have."""
        unknown = sorted(set(job.options) - set(self.options))
        check(
            not unknown,
            f"method {self.name!r} has no options {unknown}: expected some of {sorted(self.options)}",
        )
        return {**self.options, **job.options}


def train_stage(job: Job, **averaging: Any) -> Stage:
    """Dense training of ``job.steps`` steps; ``averaging`` (fields of ``PruneConfig``) records an average."""

    def optimizer(run: Run) -> Any:
        return job.make_optimizer(run.model, job.config(**{"importance": "magnitude", **averaging}))

    return Stage("train", job.steps, optimizer, end=Run.read_averages, averaging=averaging)


def finetune_stage(
    job: Job, choose: Action, name: str = "finetune", steps: int | None = None
) -> Stage:
    """Training under fixed masks; ``choose`` puts them into ``run.masks`` before the first step."""

    def optimizer(run: Run) -> Any:
        return job.make_optimizer(run.model, job.config(importance="magnitude"), job.finetune_lr)

    def begin(run: Run) -> None:
        choose(run)
        run.install(run.masks)

    return Stage(name, job.finetune if steps is None else steps, optimizer, begin, best_from=0)


def needs_sparsity(job: Job, method: str) -> None:
    """``ValueError`` unless the pattern or ``sparsity`` says how much is removed."""
    check(
        job.sparsity is not None or (":" in job.pattern and not job.pattern.startswith("block")),
        f"method {method!r} needs a sparsity for the pattern {job.pattern!r}, got None",
    )
