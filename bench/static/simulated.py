"""What the PTX simulator counts of every problem, a kernel at a time.

Counts are exact and the same on every machine; they are no times. Warp instructions are those of PTX: the machine code
has about as many.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from bench.gate import GateError
from bench.static.compiled import demangle
from bench.static.problem import Arguments, Problem

PROCESSORS = 16  # cudaDevAttrMultiProcessorCount
KINDS = ("load", "store", "copy", "atomic")


@dataclass(frozen=True)
class Counts:
    """The launches of one kernel in one problem, counts added."""

    problem: Problem
    kernel: str  # demangled
    launches: tuple[tuple[tuple[int, ...], tuple[int, ...], int], ...]  # grid, block, dynamic bytes
    stats: Mapping[str, int]
    longer: Mapping[str, int] | None = None  # of the same problem with a larger K

    @property
    def family(self) -> str:
        return self.kernel.partition("<")[0]

    @property
    def footprint(self) -> int:
        """Bytes of the sectors that were read, and of those written: what DRAM must move."""
        return sum(self.stats.get(f"global.{kind}.footprint", 0) for kind in KINDS)

    def total(self, space: str, what: str) -> int:
        """A count of memory requests, loads, stores, copies and atomics together."""
        return sum(self.stats.get(f"{space}.{kind}.{what}", 0) for kind in KINDS)


def ratio(a: float, b: float) -> float | None:
    return a / b if b else None


def mma(stats: Mapping[str, int]) -> int:
    """Warp-level matrix instructions, sparse or dense."""
    return sum(n for name, n in stats.items() if name.startswith("inst.mma."))


def slope(counts: Counts, of: Callable[[Mapping[str, int]], float]) -> float | None:
    """What one more mma costs: the difference of two K over the difference of their mma."""
    if counts.longer is None:
        return None
    return ratio(of(counts.longer) - of(counts.stats), mma(counts.longer) - mma(counts.stats))


def wavefronts(stats: Mapping[str, int]) -> float:
    return sum(stats.get(f"shared.{kind}.wavefronts", 0) for kind in KINDS)


def edge_instructions(counts: Counts) -> float | None:
    """Warp instructions before and after the inner loop, a warp: what is left when the loop's share is taken off."""
    each = slope(counts, lambda stats: stats["inst"])
    if each is None:
        return None
    warps = sum(
        grid[0] * grid[1] * grid[2] * -(-block[0] * block[1] * block[2] // 32)
        for grid, block, _ in counts.launches
    )
    return (counts.stats["inst"] - each * mma(counts.stats)) / warps


#: name in budgets.toml -> (what the table calls it, value or None where a kernel has nothing of the kind)
METRICS: dict[str, tuple[str, Callable[[Counts], float | None]]] = {
    "sectors_ratio": (
        "sectors/ideal",
        lambda c: ratio(32 * c.total("global", "sectors"), c.total("global", "bytes")),
    ),
    "wavefronts_ratio": (
        "wavefronts/ideal",
        lambda c: ratio(c.total("shared", "wavefronts"), c.total("shared", "ideal")),
    ),
    "bytes_per_item": ("bytes/item", lambda c: c.footprint / c.problem.items),
    "instructions_per_item": ("inst/item", lambda c: 32 * c.stats["inst"] / c.problem.items),
    "instructions_per_mma": ("inst/mma", lambda c: slope(c, lambda stats: stats["inst"])),
    "wavefronts_per_mma": ("wavefronts/mma", lambda c: slope(c, wavefronts)),
    "edge_instructions": ("edge inst/warp", edge_instructions),
}


def metrics(counts: Counts) -> dict[str, float]:
    """Every metric that the kernel has."""
    values = {name: measure(counts) for name, (_, measure) in METRICS.items()}
    return {name: value for name, value in values.items() if value is not None}


def by_kernel(launches: Sequence[Any]) -> dict[str, list[Any]]:
    """Demangled name -> launches, in order of the first."""
    names = demangle(launch.name for launch in launches)
    grouped: dict[str, list[Any]] = {}
    for launch in launches:
        grouped.setdefault(names[launch.name], []).append(launch)
    return grouped


def added(launches: Sequence[Any]) -> dict[str, int]:
    total: dict[str, int] = {}
    for launch in launches:
        for name, count in launch.stats.items():
            total[name] = total.get(name, 0) + int(count)
    return total


def count(gpu: Any, problem: Problem) -> list[Counts]:
    """Run one problem; its kernels in the order of their first launch."""

    def launched(make: Arguments) -> dict[str, list[Any]]:
        torch.manual_seed(0)  # the same arguments every time
        before = gpu.attributes[PROCESSORS]
        gpu.attributes[PROCESSORS] = problem.processors or before
        try:
            gpu.call(problem.op, *make(), **problem.options)
        finally:
            gpu.attributes[PROCESSORS] = before
        return by_kernel(gpu.launches)

    first = launched(problem.make)
    second = launched(problem.longer) if problem.longer is not None else {}
    return [
        Counts(
            problem,
            kernel,
            tuple((n.grid, n.block, n.shared) for n in launches),
            added(launches),
            added(second[kernel]) if kernel in second else None,
        )
        for kernel, launches in first.items()
    ]


def count_all(problems: Sequence[Problem]) -> list[Counts]:
    """Run every problem on the simulator.

    Raises:
        GateError: where the simulated library cannot be built.
    """
    from tests import simulated  # bench imports it only here: the other commands need no simulator

    if reason := simulated.reason():
        raise GateError(f"nothing is simulated: {reason}")
    gpu = simulated.Gpu()
    return [counts for problem in problems for counts in count(gpu, problem)]


def precision(opcode: str) -> str:
    """``tf32``, ``s8`` or ``16`` (f16 and bf16) of an mma's operands."""
    return next((name for name in ("tf32", "s8") if f".{name}." in opcode), "16")


def operations(stats: Mapping[str, int]) -> dict[str, float]:
    """Operations by the unit that does them: ``tensor 16``, ``sparse 16``, .., and ``fp32``.

    mma m x n x k: 2 m n k, for mma.sp with the k of the dense product. fp32: 32 lanes of a warp instruction, an fma
    is two.
    """
    found: dict[str, float] = {}

    def add(unit: str, number: float) -> None:
        found[unit] = found.get(unit, 0.0) + number

    for name, number in stats.items():
        opcode = name.removeprefix("inst.")
        if shape := re.match(r"mma\..*\.m(\d+)n(\d+)k(\d+)\.", opcode):
            m, n, k = map(int, shape.groups())
            unit = "sparse" if opcode.startswith("mma.sp") else "tensor"
            add(f"{unit} {precision(opcode)}", 2.0 * m * n * k * number)
        elif re.match(r"(fma|add|sub|mul|min|max)\.(\w+\.)*f32$", opcode):
            add("fp32", 32.0 * number * (2 if opcode.startswith("fma") else 1))
    return found
