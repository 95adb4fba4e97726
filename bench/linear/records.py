"""Records of the linear-layer benchmark: where they lie, and which of their cells need not be measured again."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from bench import report
from bench.linear.cells import GRID_PATTERNS, GRID_SHAPES, Cell, key_of
from evoprune_kernels import measure

#: what a figure depends on: a cell stays good while none of this changes
SOURCES = (
    "csrc",
    "evoprune_kernels",
    "setup.py",
    "bench/peers",
    "bench/roofline.py",
    "bench/linear/cells.py",
    "bench/linear/ours.py",
    "bench/linear/timing.py",
)


def default_path(*, grid: bool, threads: int, name: str = "linear") -> Path:
    """``bench/results/linear-<isa>.json`` of a grid; anything less goes to ``bench/out``, which git ignores."""
    isa = measure.machine_info()["isa"]
    suffix = "" if threads == 1 else f"-{threads}threads"
    folder = report.RESULTS if grid else report.RESULTS.with_name("out")
    return folder / f"{name}-{isa}{suffix}.json"


def machine() -> dict[str, Any]:
    """The machine as records name it."""
    return {k: v for k, v in measure.machine_info().items() if k != "threads"}


def previous(path: Path, *, threads: int) -> dict[str, Any] | None:
    """The record at ``path`` where it was measured on this machine with as many threads, else None."""
    if not path.exists():
        return None
    record = json.loads(path.read_text())
    if record["machine"] != machine() or record["threads"] != threads:
        return None
    return record if record["label"].startswith("measured") else None


def still_good(record: dict[str, Any] | None, *, seconds: float) -> list[dict[str, Any]]:
    """The cells of a previous record that would be measured again in the same way: same sources, same time a cell."""
    if record is None:
        return []
    cells = [e for e in record["results"]["cells"] if e.get("seconds_a_cell") == seconds]
    good = {commit: same_sources(commit) for commit in {e["commit"] for e in cells}}
    return [entry for entry in cells if good[entry["commit"]]]


def same_sources(commit: str) -> bool:
    """Whether the measured sources are now what they were at ``commit``."""
    return report.unchanged_since(commit, SOURCES)


def missing_cells(groups: list[list[Cell]], good: list[dict[str, Any]]) -> list[list[Cell]]:
    """The groups without the cells that ``good`` has; empty groups go."""
    known = {key_of(entry) for entry in good}
    left = [[cell for cell in group if cell.key not in known] for group in groups]
    return [group for group in left if group]


def in_order(entries: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Entries by shape, pattern and tokens as the grid lists them; what it does not list comes last."""

    def place(entry: Mapping[str, Any]) -> tuple[Any, ...]:
        shape, pattern = entry["shape"], entry["pattern"]
        return (
            GRID_SHAPES.index(shape) if shape in GRID_SHAPES else len(GRID_SHAPES),
            shape,
            GRID_PATTERNS.index(pattern) if pattern in GRID_PATTERNS else len(GRID_PATTERNS),
            pattern,
            entry["tokens"],
            entry["weights"],
        )

    return sorted(entries, key=place)
