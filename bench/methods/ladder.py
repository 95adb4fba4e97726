"""The papers' methods and their control arms on real data: ``python -m bench methods --task mnist``.

    for seed:  dense network -> arm x sparsity -> accuracy (or loss) on the test set, written at once
               dense + the same extra steps, n:m masks, noise, FGSM, PGD-10, training on a part of the data

A run that is cut off goes on with ``--resume``. The state that is kept is the best on the validation set; the test set
is looked at once, at the end of every run. Record, table and picture: ``bench/results/methods-<task>.{json,md,png}``.
"""

from __future__ import annotations

import argparse
import time
from pathlib import Path
from typing import Any

from torch import nn

from bench import gate, report
from bench.methods import consensus, consensus_data, evaluate, robust, summary, unfinished
from bench.methods.data import TASKS, Task, load
from bench.methods.plans import AFTER_TRAINING, Plan, plan_of
from evoprune_kernels import measure, methods
from evoprune_kernels._check import check

#: the average that a method needs of the dense training; the others need none
AVERAGES = {
    "evolution_threshold_2022": "sqrt",
    "smart_bezier_2022": "sqrt",
    "evolution_llm_2024": "linear",
    "smart_prune_2023": "linear",
}
TESTS = ("tests/methods", "tests/optim/test_rules.py", "tests/optim/test_growth.py")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The options of ``python -m bench methods``."""
    parser.add_argument(
        "--task", choices=sorted({*TASKS, *consensus_data.SHAPES}), default="digits"
    )
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--arms", nargs="*", help="only these arms of the plan")
    parser.add_argument("--sparsities", nargs="*", type=float, help="instead of the plan's")
    parser.add_argument("--resume", action="store_true", help="keep the cells of the record")
    parser.add_argument(
        "--no-parts", action="store_true", help="leave out training on parts of the data"
    )
    parser.add_argument(
        "--latency",
        action="store_true",
        help="tasks consensus-*: measure the networks of the record, dense and compacted",
    )
    parser.add_argument("--width", type=int, help="tasks consensus-*: of the network's first stage")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument(
        "--quick", action="store_true", help="an epoch, one seed; a test of the program, no figure"
    )
    parser.add_argument("--json", help="default: bench/results/methods-<task>.json")
    gate.add_argument(parser)


class Ladder:
    """All runs of a task; ``cells`` maps ``"arm|point|seed"`` to what a run ended with."""

    def __init__(self, task: Task, plan: Plan, quick: bool, path: Path) -> None:
        self.task, self.plan, self.path = task, plan, path
        batches = len(task.batches(0))
        epochs = 1 if quick else plan.epochs or task.epochs
        self.steps = epochs * batches
        finetune = plan.finetune_steps or plan.finetune * batches
        self.finetune = min(finetune, batches) if quick else finetune
        self.cells: dict[str, Any] = {}
        self.dense: dict[tuple[int, str], methods.Dense] = {}

    def run(
        self, arm: str, seed: int, sparsity: float | None, pattern: str = "unstructured"
    ) -> methods.Result:
        """One arm from scratch or from the shared dense training of its seed."""
        task = self.task
        adam = task.optimizer == "adam"
        options = dict(self.plan.options.get(arm, {}))
        if arm in ("evolution_threshold_2022", "smart_bezier_2022"):
            options["window"] = self.plan.window
        dense = self.shared(arm, seed)
        result = methods.run(
            arm, task.make_model(seed), task.batches(seed), [task.validation_batch],
            steps=self.steps, finetune=self.finetune, sparsity=sparsity, pattern=pattern,
            loss=evaluate.batch_loss, evaluate=evaluate.loss_and_accuracy, optimizer="adamw" if adam else "sgd",
            lr=task.lr,
            momentum=0.0 if adam else 0.9, exclude=self.plan.exclude, keep_best=True, seed=seed,
            dense=dense, progress=False, **options,
        )  # fmt: skip
        if result.dense is not None:
            self.dense.setdefault((seed, result.dense.averaging.get("averaging", "")), result.dense)
        return result

    def shared(self, arm: str, seed: int) -> methods.Dense | None:
        """Dense training of this seed that the arm can start from: with the average that it needs, else any."""
        if arm not in (*AFTER_TRAINING, "dense"):
            return None
        averaging = AVERAGES.get(arm)
        if averaging is not None:
            return self.dense.get((seed, averaging))
        return next((dense for (s, _), dense in self.dense.items() if s == seed), None)

    def measure(self, arm: str, seed: int, point: float | str) -> nn.Module | None:
        """Fill one cell, unless it is filled; the network, if it was trained now."""
        key = f"{arm}|{point}|{seed}"
        if key in self.cells:
            return None
        start = time.perf_counter()
        nm = isinstance(point, str)
        sparsity = None if nm or arm == "dense" else float(point)
        result = self.run(
            arm, seed, sparsity, str(point) if nm and arm != "dense" else "unstructured"
        )
        record = result.record
        self.cells[key] = {
            "value": score(self.task, result.model),
            "sparsity": record["sparsity"]["sparsity"],
            "layers": record["sparsity"],
            "best_step": record["best_step"],
            "options": record["job"]["options"],
            "seconds": time.perf_counter() - start,
        }
        print(
            f"{self.task.name} seed {seed} {arm} {point}: {self.cells[key]['value']:.4f},"
            f" sparsity {self.cells[key]['sparsity']:.4f}, {self.cells[key]['seconds']:.1f} s",
            flush=True,
        )
        self.keep()
        return result.model

    def keep(self) -> None:
        """Write the cells beside the record, for ``--resume``."""
        unfinished.keep(self.path, self.cells)


def score(task: Task, model: nn.Module) -> float:
    """Accuracy or loss on the test set."""
    of = evaluate.accuracy if task.metric == "accuracy" else evaluate.loss
    return of(model, task.test.images, task.test.labels)


def run(args: argparse.Namespace) -> dict[str, Any]:
    """Run the plan of a task; returns the record that is written."""
    if args.task in consensus_data.SHAPES:
        return consensus.run(args)
    check(not args.latency, f"--latency is for tasks {sorted(consensus_data.SHAPES)}")
    passed = gate.check(TESTS, skip=args.no_gate)
    task, plan = load(args.task), plan_of(args.task)
    path = Path(args.json or report.RESULTS / f"methods-{task.name}.json")
    ladder = Ladder(task, plan, args.quick, path)
    if args.resume:
        ladder.cells = unfinished.load(path)
    arms = [arm for arm in plan.arms if not args.arms or arm in args.arms]
    seeds = 1 if args.quick else args.seeds
    sparsities = args.sparsities or (plan.sparsities[:1] if args.quick else plan.sparsities)
    with measure.threads(args.threads):
        extras = robust.Extras(ladder)
        for seed in range(seeds):
            for arm in arms:
                for sparsity in sparsities:
                    extras.look(arm, seed, ladder.measure(arm, seed, sparsity), sparsity)
            for arm in plan.nm:
                ladder.measure(arm, seed, "2:4")
            # last, so that it shares the dense training of an arm that needed an average of it
            extras.look("dense", seed, ladder.measure("dense", seed, 0.0))
            if not args.no_parts:
                extras.train_on_parts(seed, args.quick)
    results = {
        "task": task.name,
        "metric": task.metric,
        "source": task.source,
        "scaled_down": task.scaled_down,
        "training": [len(task.train), len(task.validation), len(task.test)],
        "steps": ladder.steps,
        "finetune": ladder.finetune,
        "plan": plan.to_dict(),
        "seeds": seeds,
        "cells": ladder.cells,
    }
    name = f"methods-{task.name}"
    record = report.build(name, results, gate=passed, threads=args.threads, quick=args.quick)
    written = report.write(record, path)
    summary.write(record, written.with_suffix(".md"), written.with_suffix(".png"))
    unfinished.path_of(path).unlink(missing_ok=True)
    print(summary.markdown(record))
    print(written)
    return record
