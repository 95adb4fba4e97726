"""Consensus gates and ssProp on a ResNet-20: ``python -m bench methods --task consensus-fashion``.

    for seed:  dense, gates (static, dynamic), random gates, batch-norm scales, ssProp by three schedules
               -> accuracy on the test set, connections removed, polarization, static against learned gates
    --latency  dense against compacted networks of the recorded shapes: time, and energy where the machine tells it

All arms take the same steps from the same first weights and see the same batches. The state kept is the best on the
validation set among the ends of epochs under the final gates; the test set is looked at once, at the end. A run that is
cut off goes on with ``--resume``.
"""

from __future__ import annotations

import argparse
import json
import os
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from torch import nn

from bench import gate, report
from bench.methods import consensus_data, consensus_energy, consensus_page, evaluate, unfinished
from bench.methods.data import Task
from evoprune_kernels import measure, methods

TESTS = (
    "tests/methods/test_consensus.py",
    "tests/methods/test_ssprop_preset.py",
    "tests/nn/test_gates.py",
    "tests/nn/test_compaction.py",
)
#: epochs of training, and under fixed gates, for every arm
EPOCHS, FINETUNE = 5, 1
#: asked for beyond the point, of the gated layers' own weights: stem, shortcuts and head have no gates, and a channel
#: of a last block counts half of what it takes along
MARGIN = 0.06


@dataclass(frozen=True)
class Arm:
    """A method with its options at some sparsities; 0.0: nothing is removed."""

    name: str
    method: str
    points: tuple[float, ...] = (0.0,)
    options: dict[str, Any] = field(default_factory=dict)
    margin: float = MARGIN


WHERE = {"where": "*.conv1"}
#: budget: tried at 2 and 5 on the validation images of seed 0 with width 16, two epochs; at 2 no gate closes so soon
GATES = {**WHERE, "budget": 5.0}
#: dense in the first half of the steps, then 0.8 of the channels dropped
BAR = {"ramp": "bar", "kept": 1.0, "final": 0.2}
ARMS = (
    Arm("dense", "dense"),
    Arm("consensus_gates", "consensus_gates", (0.5, 0.7), GATES),
    Arm("consensus_gates_dynamic", "consensus_gates", (0.5,), {**GATES, "dynamic": True}),
    Arm("random_gates", "random_gates", (0.5,), WHERE, margin=0.02),
    # the published strength, 5e-5 in 62,500 steps, moves a scale as far as this does in 470
    Arm("bn_polarization", "bn_polarization", (0.5,), {**WHERE, "strength": 3e-3}),
    Arm("ssprop_bar", "ssprop", options=BAR),
    Arm("ssprop_constant", "ssprop", options={"kept": 0.2}),
    Arm("ssprop_random", "ssprop", options={**BAR, "random": True}),
)


class Cells:
    """All runs of a task; ``found`` maps ``"arm|point|seed"`` to what a run ended with."""

    def __init__(self, task: Task, path: Path, quick: bool) -> None:
        self.task, self.path = task, path
        batches = len(task.batches(0))
        self.steps = (1 if quick else EPOCHS) * batches
        self.finetune = FINETUNE * batches
        self.found: dict[str, Any] = {}

    def fill(self, arm: Arm, point: float, seed: int) -> None:
        """Run one arm, unless it was run."""
        key = f"{arm.name}|{point}|{seed}"
        if key in self.found:
            return
        wall, cpu, load = time.perf_counter(), time.process_time(), os.getloadavg()[0]
        result = self.train(arm, point, seed)
        seconds = {"seconds": time.perf_counter() - wall, "cpu_seconds": time.process_time() - cpu}
        self.found[key] = cell_of(self.task, result) | seconds | {"load": load}
        cell = self.found[key]
        print(
            f"{self.task.name} seed {seed} {arm.name} {point}: {cell['value']:.4f}, removed {cell['sparsity']:.4f},"
            f" {cell['numbers']}, {seconds['seconds']:.0f} s ({seconds['cpu_seconds']:.0f} s of CPU)",
            flush=True,
        )
        unfinished.keep(self.path, self.found)

    def train(self, arm: Arm, point: float, seed: int) -> methods.Result:
        """One arm at one point and seed."""
        task, model = self.task, self.task.make_model(seed)
        head = [name for name, m in model.named_modules() if isinstance(m, nn.Linear)]
        return methods.run(
            arm.method, model, task.batches(seed), [task.validation_batch],
            steps=self.steps, finetune=self.finetune, sparsity=point + arm.margin if point else None,
            loss=evaluate.batch_loss, evaluate=evaluate.loss_and_accuracy, optimizer="sgd", lr=task.lr,
            momentum=0.9, weight_decay=5e-4,
            decay="cosine", finetune_lr=task.lr / 5, keep_best=True, seed=seed,
            exclude=head if arm.method == "ssprop" else (), progress=False, **arm.options,
        )  # fmt: skip


def cell_of(task: Task, result: methods.Result) -> dict[str, Any]:
    """What is kept of a run; ``value`` is the accuracy of the compacted network where there is one."""
    images, labels = task.test.images, task.test.labels
    record = result.record
    numbers = {k: v for k, v in record["numbers"].items() if not k.startswith("draws/")}
    details = record["details"].get("compaction", {})
    cell: dict[str, Any] = {
        "value": evaluate.accuracy(result.model, images, labels),
        "sparsity": 0.0,
        "numbers": numbers,
        "best_step": record["best_step"],
        "options": record["job"]["options"],
        "compaction": {},
    }
    if result.compacted is None and details:
        cell["not_compacted"] = details  # the reason
    if result.compacted is not None:
        cell["compaction"] = details
        cell["gated"] = cell["value"]
        cell["value"] = evaluate.accuracy(result.compacted, images, labels)
        cell["sparsity"] = details["removed"]
        # what bench.methods.models.resnet rebuilds the network from
        cell["inner"] = [
            m.out_channels  # type: ignore[misc]
            for n, m in result.compacted.named_modules()
            if n.endswith(".conv1")
        ]
    return cell


def run(args: argparse.Namespace) -> dict[str, Any]:
    """Fill all cells of a task, or measure the networks of its record; returns the record that is written."""
    path = Path(args.json or report.RESULTS / f"methods-{args.task}.json")
    if args.latency:
        return measured(args, path)
    passed = gate.check(TESTS, skip=args.no_gate)
    folder = os.environ.get("EVOPRUNE_DATA")
    task = consensus_data.load(args.task, Path(folder) if folder else None, args.width)
    cells = Cells(task, path, args.quick)
    if args.resume:
        cells.found = unfinished.load(path)
    seeds = 1 if args.quick else args.seeds
    with measure.threads(args.threads):
        for seed in range(seeds):
            for arm in ARMS:
                points = arm.points[:1] if args.quick else arm.points
                for point in points if not args.arms or arm.name in args.arms else ():
                    cells.fill(arm, point, seed)
    results = {
        "task": task.name,
        "metric": task.metric,
        "source": task.source,
        "scaled_down": task.scaled_down,
        "training": [len(task.train), len(task.validation), len(task.test)],
        "image": list(task.train.images.shape[1:]),
        "steps": cells.steps,
        "finetune": cells.finetune,
        "margins": {arm.name: arm.margin for arm in ARMS},
        "seeds": seeds,
        "model": consensus_data.shape_of(task.name, args.width),
        "cells": cells.found,
    }
    record = report.build(
        f"methods-{task.name}", results, gate=passed, threads=args.threads, quick=args.quick
    )
    unfinished.path_of(path).unlink(missing_ok=True)
    return _written(record, path)


def measured(args: argparse.Namespace, path: Path) -> dict[str, Any]:
    """The record at ``path`` with its compacted networks measured against the dense one."""
    record = json.loads(path.read_text())
    load = os.getloadavg()[0]
    with measure.threads(args.threads):
        found = consensus_energy.measure_all(record["results"], quick=args.quick)
    made = report.build("latency", found, gate=gate.check((), skip=True), threads=args.threads)
    kept = ("command", "commit", "date", "machine", "threads")
    record["results"]["latency"] = {**found, "load": load, **{key: made[key] for key in kept}}
    return _written(record, path)


def _written(record: dict[str, Any], path: Path) -> dict[str, Any]:
    written = report.write(record, path)
    consensus_page.write(record, written.with_suffix(".md"), written.with_suffix(".png"))
    print(consensus_page.markdown(record))
    print(written)
    return record
