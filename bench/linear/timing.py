"""Builds, checks and times the contenders of the linear-layer benchmark.

Dense contenders get the whole weight, sparse ones the pruned weight (the time of a dense product does not depend on
zeros). Dense stacks are built once for a shape and a number of tokens and serve every pattern; the others come and go
with their cell, since memory would not hold all of them. Before it is timed, every contender's result is held against
fp64: by the tolerance law, or, where its arithmetic is narrower, by the error that its adapter states.
"""

from __future__ import annotations

import argparse
import gc
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from bench.linear.cells import Cell, select, split_pattern
from bench.linear.ours import our_stack, stored_of
from bench.peers import ADAPTERS, Adapter, Job, Stack
from bench.peers.adapter import each
from bench.roofline import Roofline
from evoprune_kernels import measure
from tests.tolerance import assert_accurate, max_error

#: the rival that a CPU user would pick; ours is also compared with it round by round
INT8 = "torch int8 dynamic"
#: a peer whose one pass takes this many times the dense one's is recorded with that pass, and not timed further
HOPELESS = 3.0
#: tokens that are held against fp64, at most
CHECKED_TOKENS = 128
#: what stays free beside a peer's stack, which may take twice the dense weights while it is built
FREE_BYTES = 1 << 30


class Group:
    """Cells of one shape and number of tokens: the weight, its stack, the activations and the dense contenders."""

    def __init__(self, cells: list[Cell], args: argparse.Namespace, present: list[Adapter]) -> None:
        first = cells[0]
        self.cells, self.args = cells, args
        self.sparse = [adapter for adapter in present if adapter.weight == "sparse"]
        generator = torch.Generator().manual_seed(0)
        self.weight = torch.randn(first.shape, generator=generator) / first.shape[1] ** 0.5
        self.x = torch.randn(first.tokens, first.shape[1], generator=generator)
        # rolled, so that no runtime can find two layers equal and keep one
        self.layers = [self.weight.roll(i, 0) for i in range(first.layers)]
        self.left_out: dict[str, str] = {}
        self.stacks: dict[str, Stack] = {}
        job = Job(self.layers, self.x, threads=args.threads)
        for adapter in present:
            if adapter.weight == "dense" and self.wanted(adapter):
                self.add(self.stacks, self.left_out, adapter, job)

    def wanted(self, adapter: Adapter) -> bool:
        """bfloat16 is a rival of bfloat16 weights only; it is left out where no cell has them."""
        if adapter.precision != "bf16":
            return True
        return any(stored_of(c.pattern).precision == "bf16" for c in self.cells)

    def add(
        self, stacks: dict[str, Stack], left_out: dict[str, str], adapter: Adapter, job: Job
    ) -> None:
        """Build and check one peer, or keep why it is not there: a peer that fails does not stop the others."""
        if free_bytes() < FREE_BYTES + 2 * sum(layer.nbytes for layer in self.layers):
            left_out[adapter.name] = "no memory left for its stack"
            return
        stack = None
        try:
            stack = adapter.build(job)
            if stack is not None:
                stack.error = check(stack.rows(), job.layers[0], self.x, adapter.error)
                stacks[adapter.name] = stack
        except (
            Exception
        ) as error:  # whatever a library throws is its reason, and the record shows it
            left_out[adapter.name] = f"{type(error).__name__}: {error}".splitlines()[0]
            if stack is not None:
                stack.close()

    def close(self) -> None:
        for stack in self.stacks.values():
            stack.close()
        self.stacks.clear()
        self.layers.clear()
        gc.collect()


def free_bytes(path: Path = Path("/proc/meminfo")) -> int:
    """Memory that may still be had; very much where the system does not tell."""
    if path.exists():
        for line in path.read_text().splitlines():
            if line.startswith("MemAvailable:"):
                return int(line.split()[1]) << 10
    return 1 << 62


def check(y: Tensor, weight: Tensor, x: Tensor, error: float | None) -> float:
    """Hold ``y`` against ``x weight^T`` in fp64 on up to ``CHECKED_TOKENS`` tokens; returns the relative error.

    Raises:
        AssertionError: where it is further off than the tolerance law allows, or than ``error``.
    """
    few = slice(None, None, -(-x.shape[0] // CHECKED_TOKENS))
    y, x = y[few], x[few]
    truth = x.double() @ weight.double().T
    relative = max_error(y, truth) / max(truth.abs().max().item(), 1e-30)
    if error is None:
        assert_accurate(y, truth, F.linear(x, weight))
    else:
        assert relative <= error, f"relative error {relative:.3e} against fp64 exceeds {error:.3e}"
    return relative


def measure_group(group: Group) -> Iterator[dict[str, Any]]:
    """One entry for each cell of the group."""
    for cell in group.cells:
        yield measure_cell(cell, group)
        gc.collect()


def measure_cell(cell: Cell, group: Group) -> dict[str, Any]:
    """Check, then time the contenders of one cell."""
    pattern, density = split_pattern(cell.pattern)
    stored = stored_of(cell.pattern)
    mask = select(group.weight, pattern, density)
    masked = group.weight * mask
    ours, kept = our_stack(stored, pattern, mask, masked, group.x, cell.layers)
    ours.error = check(ours.rows(), kept, group.x, stored.error)
    del kept
    dense = each([lambda w=weight: F.linear(group.x, w) for weight in group.layers])
    dense.error = check(dense.rows(), group.layers[0], group.x, None)
    rivals, left_out = dict(group.stacks), dict(group.left_out)
    if stored.precision != "bf16":
        rivals = {n: s for n, s in rivals.items() if ADAPTERS[n].precision != "bf16"}
    own: dict[str, Stack] = {}
    job = Job([masked] * cell.layers, group.x, pattern, group.args.threads)
    try:
        for adapter in group.sparse:
            group.add(own, left_out, adapter, job)
        rivals |= own
        slow = hopeless(dense, rivals) if not group.args.quick else {}
        contenders = {"dense": dense.run, "ours": ours.run}
        contenders |= {name: stack.run for name, stack in rivals.items() if name not in slow}
        samples = measure.interleave(
            measure.add_control(contenders, "dense"),
            rounds=group.args.rounds,
            warmup=1,
            max_seconds=group.args.seconds,
            min_sample=0.0 if group.args.quick else 2e-3,
        )
    finally:
        for stack in own.values():
            stack.close()
    stacks = {"dense": dense, "ours": ours} | rivals
    entry = describe(cell, samples, mask, {name: stack.error for name, stack in stacks.items()})
    entry["left_out"] = left_out
    entry["too_slow"] = slow
    entry["work"] = work_of(entry, ours.nbytes, group.x)
    if stored.w8a8:  # the limit of integer arithmetic is not measured
        entry["work"]["flop"] = 0.0
    return entry


def hopeless(dense: Stack, rivals: Mapping[str, Stack]) -> dict[str, float]:
    """Peer -> speed-up by one pass each, of those that cannot be the best one: not worth their time."""
    calls = {"dense": dense.run} | {name: stack.run for name, stack in rivals.items()}
    once = measure.interleave(calls, rounds=1, warmup=1)
    ratios = {name: once.ratio("dense", name).median for name in rivals}
    return {name: ratio for name, ratio in ratios.items() if ratio < 1 / HOPELESS}


def describe(
    cell: Cell, samples: measure.Measurement, mask: Tensor, errors: Mapping[str, float]
) -> dict[str, Any]:
    """One cell as plain numbers; times are seconds per layer, ratios are dense over the contender, errors relative."""
    entry: dict[str, Any] = {
        "shape": "x".join(map(str, cell.shape)),
        "pattern": cell.pattern,
        "density": mask.double().mean().item(),
        "tokens": cell.tokens,
        "weights": cell.weights,
        "layers": cell.layers,
        "contenders": {},
    }
    for name in samples.samples:
        timing = samples.timing(name).to_dict()
        seconds = {k: short(v / cell.layers) for k, v in timing.items() if k != "rounds"}
        entry["contenders"][name] = {
            "seconds": seconds,
            "rounds": timing["rounds"],
            "speedup": {k: short(v) for k, v in samples.ratio("dense", name).to_dict().items()},
            "error": short(errors[name.removesuffix(measure.CONTROL_SUFFIX)]),
        }
    entry["noise"] = short(samples.noise("dense"))
    if INT8 in samples.samples:
        over = samples.ratio(INT8, "ours").to_dict()
        entry["over"] = {INT8: {k: short(v) for k, v in over.items()}}
    return entry


def short(value: float) -> float:
    """Five digits: a record of hundreds of cells stays readable."""
    return float(f"{value:.5g}")


def work_of(entry: dict[str, Any], weight_bytes: int, x: Tensor) -> dict[str, float]:
    """What our kernel must do for a layer: read its packed tensors and x, write y, multiply the kept weights."""
    rows, columns = map(int, entry["shape"].split("x"))
    return {
        "bytes": weight_bytes + x.nbytes + 4 * x.shape[0] * rows,
        "flop": 2.0 * entry["density"] * rows * columns * x.shape[0],
    }


def against_roof(entry: dict[str, Any], roof: Roofline | None) -> dict[str, Any] | None:
    """Our measured time against the least time that the measured limits allow for its work."""
    if roof is None:
        return None
    nbytes, flop = entry["work"]["bytes"], entry["work"]["flop"]
    seconds = roof.seconds(nbytes, flop, cold=entry["weights"] == "cold")
    found = entry["contenders"]
    return {
        "seconds": seconds,
        "bound": "arithmetic" if flop / roof.fma >= seconds else "memory",
        "fraction": seconds / found["ours"]["seconds"]["median"],
        "speedup_at_roof": found["dense"]["seconds"]["median"] / seconds,
    }
