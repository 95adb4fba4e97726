"""The targets of the linear kernels, read from ``bench/targets.toml``."""

from __future__ import annotations

import tomllib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

PATH = Path(__file__).with_name("targets.toml")


@dataclass(frozen=True)
class Column:
    """A number of tokens, with cold or hot weights."""

    tokens: int
    weights: str

    def __str__(self) -> str:
        return f"{self.tokens} cold" if self.weights == "cold" else str(self.tokens)


@dataclass(frozen=True)
class Row:
    """Patterns that share their targets; one target a column, or none. ``over``: the contender that ours is held to."""

    name: str
    patterns: tuple[str, ...]
    targets: tuple[float | None, ...]
    over: str = "dense"


@dataclass(frozen=True)
class Targets:
    """The whole table."""

    shapes: tuple[str, ...]
    columns: tuple[Column, ...]
    rows: tuple[Row, ...]
    scaling: float
    reasons: Mapping[str, Mapping[str, str]]

    def reason(self, isa: str, row: Row, column: Column) -> str | None:
        """Why a cell is below its target or a peer, where somebody wrote it down."""
        return self.reasons.get(isa, {}).get(f"{row.name} @ {column.tokens}")


def load(path: Path = PATH) -> Targets:
    """Read the table.

    Raises:
        ValueError: where a row has another number of targets than there are columns, or a target is not above 0.
    """
    data = tomllib.loads(path.read_text())
    columns = tuple(Column(c["tokens"], c["weights"]) for c in data["columns"])
    rows = tuple(row(entry, len(columns)) for entry in data["row"])
    return Targets(
        tuple(data["shapes"]), columns, rows, float(data["scaling"]), data.get("reasons", {})
    )


def row(entry: Mapping[str, Any], columns: int) -> Row:
    """One row of the file."""
    targets = tuple(target or None for target in entry.get("targets", ("",) * columns))
    if len(targets) != columns:
        raise ValueError(f"{entry['name']!r}: expected {columns} targets, got {len(targets)}")
    if any(target is not None and not target > 0 for target in targets):
        raise ValueError(f"{entry['name']!r}: expected targets above 0, got {targets}")
    return Row(entry["name"], tuple(entry["patterns"]), targets, entry.get("over", "dense"))
