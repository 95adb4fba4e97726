"""What every kernel is held to, read from ``bench/budgets.toml``, and what exceeds it."""

from __future__ import annotations

import tomllib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

from bench.static.compiled import Compiled
from bench.static.occupancy import blocks_per_processor
from bench.static.simulated import METRICS, Counts, metrics

PATH = Path(__file__).parents[1] / "budgets.toml"
#: limits of [[kernel]]; what is not said is 0
COMPILED = ("registers", "shared", "blocks", "spills", "stack")
#: room for rounding in a ratio
CLOSE = 1 + 1e-9


@dataclass(frozen=True)
class KernelBudget:
    """Of the kernels whose name matches; a limit is a number, or one an architecture with ``all`` for the others."""

    name: str
    limits: Mapping[str, Any]

    def limit(self, what: str, arch: str) -> int:
        """The limit of one architecture."""
        value = self.limits.get(what, 0)
        return value if isinstance(value, int) else value.get(arch, value.get("all", 0))


@dataclass(frozen=True)
class ProblemBudget:
    """Of one problem's kernels whose name matches; every metric that is named."""

    problem: str
    kernel: str
    limits: Mapping[str, float]


@dataclass
class Budgets:
    """The whole file. ``used``: the blocks that matched something."""

    kernels: Sequence[KernelBudget]
    problems: Sequence[ProblemBudget]
    used: set[int] = field(default_factory=set)

    def of_kernel(self, name: str) -> KernelBudget | None:
        """The first block that matches."""
        return self._first(b for b in self.kernels if fnmatchcase(name, b.name))

    def of_problem(self, problem: str, kernel: str) -> ProblemBudget | None:
        """The first block that matches."""
        return self._first(
            b for b in self.problems if b.problem == problem and fnmatchcase(kernel, b.kernel)
        )

    def _first(self, matching: Any) -> Any:
        found = next(matching, None)
        self.used.add(id(found))
        return found

    def unused(self) -> list[str]:
        """Blocks for nothing that exists."""
        return [
            f"budgets.toml has a block for {getattr(b, 'problem', '')} {getattr(b, 'kernel', '') or b.name}: "
            "there is no such kernel"
            for b in (*self.kernels, *self.problems)
            if id(b) not in self.used
        ]


def load(path: Path = PATH) -> Budgets:
    """Read the file.

    Raises:
        ValueError: for a limit that is not known.
    """
    data = tomllib.loads(path.read_text())
    kernels = [KernelBudget(e.pop("name"), checked(e, COMPILED)) for e in data.get("kernel", [])]
    problems = [
        ProblemBudget(e.pop("problem"), e.pop("kernel"), checked(e, METRICS))
        for e in data.get("problem", [])
    ]
    return Budgets(kernels, problems)


def checked(limits: dict[str, Any], known: Any) -> dict[str, Any]:
    if unknown := set(limits) - set(known):
        raise ValueError(f"budgets.toml: expected limits of {list(known)}, got {sorted(unknown)}")
    return limits


Shape = tuple[int, int]  # threads of a block, dynamic shared bytes


def shapes_of(kernel: Compiled, counts: Sequence[Counts]) -> set[Shape]:
    """How the problems launch a kernel; how they launch its family, where they use another instance of it."""

    def shapes(matches: Any) -> set[Shape]:
        return {
            (block[0] * block[1] * block[2], shared)
            for c in counts
            if matches(c)
            for _, block, shared in c.launches
        }

    exact = shapes(lambda c: c.kernel == kernel.kernel)
    return exact or shapes(lambda c: c.family == kernel.family)


def blocks_of(kernel: Compiled, shapes: set[Shape]) -> int | None:
    """The fewest resident blocks over the launches, or None."""
    found = [
        blocks_per_processor(kernel.arch, kernel.registers, threads, kernel.shared + dynamic)
        for threads, dynamic in shapes
    ]
    return min(found, default=None)


def check_compiled(kernel: Compiled, counts: Sequence[Counts], budgets: Budgets) -> list[str]:
    """What exceeds the budget of one kernel and architecture."""
    where = f"{kernel.kernel} sm_{kernel.arch}"
    budget = budgets.of_kernel(kernel.kernel)
    if budget is None:
        return [f"{where}: has no budget"]
    over = [
        f"{where}: {value} {what}, the budget is {budget.limit(what, kernel.arch)}"
        for what in ("registers", "spills", "stack", "shared")
        if (value := getattr(kernel, what)) > budget.limit(what, kernel.arch)
    ]
    blocks = blocks_of(kernel, shapes_of(kernel, counts))
    least = budget.limit("blocks", kernel.arch)
    if blocks is None:
        over.append(f"{where}: no problem launches it")
    elif blocks < least:
        over.append(f"{where}: {blocks} blocks a processor, the budget is at least {least}")
    return over


def check_counts(counts: Counts, budgets: Budgets) -> list[str]:
    """What exceeds the budget of one kernel in one problem."""
    where = f"{counts.problem.name}, {counts.kernel}"
    budget = budgets.of_problem(counts.problem.name, counts.kernel)
    if budget is None:
        return [f"{where}: has no budget"]
    found = metrics(counts)
    over = []
    for name, limit in budget.limits.items():
        if name not in found:
            over.append(f"{where}: has no {name}, the budget is {limit}")
        elif found[name] > limit * CLOSE:
            over.append(f"{where}: {found[name]:.4g} {name}, the budget is {limit}")
    return over
