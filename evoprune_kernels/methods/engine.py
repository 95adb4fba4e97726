"""Runs the stages of a recipe: batches, progress, evaluation, a checkpoint that a cut-off run goes on from.

::

    for stage in stages:   optimizer -> begin -> (batch -> loss -> backward -> step -> after_step) * steps -> end
                                                  |
    every ``checkpoint_every`` steps  ------------+--> model, optimizer, masks, averages, numbers, random state, place

torch's global generator is seeded anew at the start of every epoch, so a ``DataLoader(shuffle=True)`` draws the same
order again when a run resumes within that epoch; the batches that were used are passed over.
"""

from __future__ import annotations

import math
import os
import time
import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from evoprune_kernels._check import check
from evoprune_kernels.methods.job import Batch, Job, Log, Run
from evoprune_kernels.methods.recipe import Recipe, Stage

FORMAT = 1
#: what two jobs must share for the dense training of one to serve the other
SHARED = ("steps", "optimizer", "lr", "decay", "momentum", "weight_decay", "exclude", "seed")


@dataclass(frozen=True)
class Dense:
    """Dense training that several methods can start from: ``methods.run(..., dense=earlier.dense)``.

    Attributes:
        model: its state dict.
        averages: parameter name -> running average of the weight; empty if none was recorded.
        averaging: how it was recorded.
        job: what another job must share.
        place: epoch, batches of it that were used, steps.
        rng: state of torch's global generator.
        history: what was evaluated.
    """

    model: dict[str, Tensor]
    averages: dict[str, Tensor]
    averaging: dict[str, Any]
    job: dict[str, Any]
    place: tuple[int, int, int]
    rng: Tensor
    history: list[dict[str, Any]]

    def check_fits(self, job: Job, stage: Stage, method: str) -> None:
        """``ValueError`` unless a run of ``job`` would train exactly so before it prunes."""
        check(stage.averaging is not None, f"method {method!r} does not begin with dense training")
        wanted = {key: job.describe()[key] for key in SHARED}
        check(
            wanted == self.job, f"dense training of another job: expected {wanted}, got {self.job}"
        )
        check(
            stage.averaging in ({}, self.averaging),
            f"method {method!r} needs the average {stage.averaging}, got {self.averaging}",
        )


class Engine:
    """One run of a recipe over a model."""

    def __init__(
        self,
        recipe: Recipe,
        job: Job,
        model: nn.Module,
        *,
        checkpoint: str | os.PathLike[str] | None = None,
        checkpoint_every: int = 500,
        progress: bool = True,
        log: Log | None = None,
    ) -> None:
        check(checkpoint_every >= 1, f"expected checkpoint_every >= 1, got {checkpoint_every}")
        self.recipe, self.job, self.log = recipe, job, log
        self.options = recipe.options_of(job)
        self.stages = recipe.stages(job)
        self.run = Run(job, model)
        self.path = None if checkpoint is None else Path(checkpoint)
        self.every = checkpoint_every
        self.history: list[dict[str, Any]] = []
        self.seconds = 0.0
        self.best: dict[str, Any] | None = None
        self.dense: Dense | None = None
        self.stage_index, self.begun = 0, False
        self._batches: Iterator[Batch] | None = None
        self._bar = _progress(sum(s.steps for s in self.stages), recipe.name) if progress else None

    def go(self, dense: Dense | None = None) -> None:
        """Run all stages, from where the checkpoint stands if there is one, else from ``dense``."""
        saved = self._load()
        if dense is not None:
            dense.check_fits(self.job, self.stages[0], self.recipe.name)
        self.recipe.prepare(self.run)
        if saved is not None:
            self._restore(saved)
        elif dense is not None:
            self._start_from(dense)
        start = time.perf_counter() - self.seconds
        was_training = self.run.model.training
        try:
            while self.stage_index < len(self.stages):
                self._run_stage(self.stages[self.stage_index], saved, start)
                saved = None
                self.stage_index, self.begun, self.run.step = self.stage_index + 1, False, 0
        finally:
            self.run.model.train(was_training)
            if self._bar is not None:
                self._bar.close()
        if self.best is not None:
            self.run.model.load_state_dict(self.best["model"])
        self.recipe.finish(self.run)
        self.seconds = time.perf_counter() - start

    def _run_stage(self, stage: Stage, saved: dict[str, Any] | None, start: float) -> None:
        run = self.run
        run.optimizer = stage.optimizer(run)
        rates = [group["lr"] for group in run.optimizer.param_groups]
        if saved is not None and saved["begun"]:
            run.optimizer.load_state_dict(saved["optimizer"])
        if not self.begun:
            stage.begin(run)
            self.begun = True
        run.model.train()
        if saved is not None and run.batch > 0:  # at the start of an epoch it is seeded anyway
            self._enter_epoch(skip=run.batch)
            torch.set_rng_state(saved["rng"])
        while run.step < stage.steps:
            factor = _decayed(self.job.decay, run.step, stage.steps)
            for group, rate in zip(run.optimizer.param_groups, rates, strict=True):
                group["lr"] = rate * factor
            ends_epoch = self._one_step(stage)
            last = run.step == stage.steps
            if ends_epoch or last:
                self._evaluate(stage)
            if self.path is not None and run.total % self.every == 0 and not last:
                self.seconds = time.perf_counter() - start
                self._save()
        stage.end(run)
        if stage.averaging is not None:
            self.dense = self._as_dense(stage)

    def _one_step(self, stage: Stage) -> bool:
        """One optimizer step; whether it was the last of its epoch."""
        run = self.run
        if run.batch == 0:
            stage.begin_epoch(run)
        batch = self._next_batch()
        run.optimizer.zero_grad(set_to_none=True)
        with stage.around(run):
            loss = self.job.loss(run.model, batch)
            penalty = stage.penalty(run)
            (loss if penalty is None else loss + penalty).backward()
        run.optimizer.step()
        run.step, run.total = run.step + 1, run.total + 1
        stage.after_step(run)
        if self._bar is not None:
            self._bar.update(1)
        if self.log is not None:
            self.log({"train/loss": loss.item()}, run.total)
        return self._at_epoch_end()

    def _as_dense(self, stage: Stage) -> Dense:
        run = self.run
        assert stage.averaging is not None
        return Dense(
            {k: v.clone() for k, v in run.model.state_dict().items()},
            dict(run.averages),
            dict(stage.averaging),
            {key: self.job.describe()[key] for key in SHARED},
            (run.epoch, run.batch, run.total),
            torch.get_rng_state(),
            list(self.history),
        )

    def _start_from(self, dense: Dense) -> None:
        run = self.run
        run.model.load_state_dict(dense.model)
        run.averages = dict(dense.averages)
        run.epoch, run.batch, run.total = dense.place
        self.history, self.stage_index, self.dense = list(dense.history), 1, dense
        if run.batch > 0:
            self._enter_epoch(skip=run.batch)
            torch.set_rng_state(dense.rng)
        if self._bar is not None:
            self._bar.update(run.total)

    # data -----------------------------------------------------------------------------------------------------------

    def _enter_epoch(self, skip: int = 0) -> None:
        train: Any = self.job.train
        torch.manual_seed(self.job.seed * 1_000_003 + self.run.epoch)
        if hasattr(train, "set_epoch"):
            train.set_epoch(self.run.epoch)
        self._batches = iter(train)
        for _ in range(skip):
            next(self._batches)
        self._peeked: Any = next(self._batches, None)

    def _next_batch(self) -> Batch:
        if self._batches is None:
            self._enter_epoch()
        check(self._peeked is not None, "expected training data, got no batch")
        batch = self._peeked
        self._peeked = next(self._batches, None)  # type: ignore[arg-type]
        self.run.batch += 1
        return batch

    def _at_epoch_end(self) -> bool:
        if self._peeked is not None:
            return False
        self.run.epoch, self.run.batch, self._batches = self.run.epoch + 1, 0, None
        return True

    # evaluation -----------------------------------------------------------------------------------------------------

    def _evaluate(self, stage: Stage) -> None:
        run, job = self.run, self.job
        entry: dict[str, Any] = {"stage": stage.name, "step": run.total, "epoch": run.epoch}
        live = run.optimizer.masks()
        weights = run.named_weights
        run_masks = {n: live[w] for n, w in weights.items() if w in live}
        kept = sum(int(m.sum()) for m in run_masks.values())
        masked = sum(m.numel() for m in run_masks.values())
        entry["sparsity"] = (masked - kept) / max(sum(w.numel() for w in weights.values()), 1)
        if job.validation is not None:
            with self._kept_random_state(), stage.around(run):
                run.model.eval()
                found = job.evaluate(run.model, job.validation)
                run.model.train()
            entry |= {f"validation/{key}": float(value) for key, value in found.items()}
            self._keep_best(stage, entry)
        self.history.append(entry)
        if self.log is not None:
            numbers = {k: v for k, v in entry.items() if isinstance(v, float)}
            sparsity = run.optimizer.sparsity_report()
            self.log(numbers | {k: v for k, v in sparsity.items() if k != "sparsity"}, run.total)

    def _keep_best(self, stage: Stage, entry: dict[str, Any]) -> None:
        """Remember the state if it is the best so far of the last stage: the lowest loss, else the first number."""
        last = self.stage_index == len(self.stages) - 1
        wanted = last and stage.best_from is not None and self.run.step > stage.best_from
        if not (self.job.keep_best and wanted):
            return
        key = "validation/loss" if "validation/loss" in entry else ""
        check(bool(key), f"keep_best needs a 'loss' from evaluate, got {sorted(entry)}")
        if self.best is None or entry[key] < self.best["loss"]:
            state = {k: v.clone() for k, v in self.run.model.state_dict().items()}
            self.best = {"loss": entry[key], "step": self.run.total, "model": state}

    @staticmethod
    def _kept_random_state() -> Any:
        return torch.random.fork_rng(devices=[])

    # checkpoint -----------------------------------------------------------------------------------------------------

    def _save(self) -> None:
        run = self.run
        assert self.path is not None
        saved = {
            "format": FORMAT,
            "method": self.recipe.name,
            "job": self.job.describe(),
            "stage": self.stage_index,
            "begun": self.begun,
            "place": [run.step, run.epoch, run.batch, run.total],
            "model": run.model.state_dict(),
            "optimizer": run.optimizer.state_dict(),
            "masks": run.masks,
            "averages": run.averages,
            "numbers": run.numbers,
            "history": self.history,
            "best": self.best,
            "seconds": self.seconds,
            "rng": torch.get_rng_state(),
        }
        half = self.path.with_name(
            self.path.name + ".part"
        )  # a stop while it is written loses nothing
        torch.save(saved, half)
        half.replace(self.path)

    def _load(self) -> dict[str, Any] | None:
        """The checkpoint, if there is one; ``ValueError`` if it belongs to another run."""
        if self.path is None or not self.path.exists():
            return None
        saved = torch.load(self.path, weights_only=True)
        ours = {"format": FORMAT, "method": self.recipe.name, "job": self.job.describe()}
        for key, value in ours.items():
            found = saved.get(key) if isinstance(saved, dict) else None
            check(
                found == value,
                f"{self.path} belongs to another run: expected {key} {value}, got {found}",
            )
        return saved

    def _restore(self, saved: dict[str, Any]) -> None:
        run = self.run
        run.model.load_state_dict(saved["model"])
        run.masks, run.averages = saved["masks"], saved["averages"]
        run.numbers = saved["numbers"]
        run.step, run.epoch, run.batch, run.total = saved["place"]
        self.stage_index, self.begun = saved["stage"], saved["begun"]
        self.history, self.best, self.seconds = saved["history"], saved["best"], saved["seconds"]
        if self._bar is not None:
            self._bar.update(run.total)


def _decayed(decay: str, step: int, steps: int) -> float:
    """The factor of the learning rate: constant, or from 1 towards 0 within the stage."""
    progress = step / steps
    return {
        "constant": 1.0,
        "linear": 1.0 - progress,
        "cosine": 0.5 * (1.0 + math.cos(math.pi * progress)),
    }[decay]


def _progress(steps: int, name: str) -> Any:
    try:
        from tqdm import tqdm
    except ImportError:
        warnings.warn("no progress bar: tqdm is not installed (pip install tqdm)", stacklevel=4)
        return None
    return tqdm(total=steps, desc=name, unit="step", mininterval=1.0)
