"""A record of runs -> Markdown: one row an arm, one column a sparsity, mean and spread over the seeds in each cell.

    {"arms": {"magnitude": {"0.9": [0.955, 0.961, 0.958]}}, "dense": [...], "metric": "accuracy", "axis": "sparsity"}

All but ``arms`` may be left out. ``metric``: "accuracy" (0-1, more is better) or "loss" (less is better). ``axis`` says
what the columns are: "sparsity", or "sigma" and "eps" for curves of noise and attacks.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from bench import report
from evoprune_kernels._check import check

METRICS = ("accuracy", "loss")
SPREADS = ("range", "std")


@dataclass(frozen=True)
class Curves:
    """A record that was checked: ``arms[name][point]`` and ``dense`` are values per seed; ``points`` ascend."""

    arms: dict[str, dict[float, list[float]]]
    dense: list[float]
    points: list[float]
    metric: str
    axis: str

    def label(self, point: float) -> str:
        """``97.4%`` for a sparsity, the number for other axes."""
        return f"{100 * point:.4g}%" if self.axis == "sparsity" else f"{point:.4g}"


def read(record: Mapping[str, Any]) -> Curves:
    """Check a record; its points may be numbers or, as JSON has them, texts.

    Raises:
        ValueError: an unknown metric, no arms, a sparsity outside [0, 1), two spellings of one point, no values, or a
            value that is not finite; names the arm and the point.
    """
    metric, axis = record.get("metric", "accuracy"), record.get("axis", "sparsity")
    check(metric in METRICS, f"expected a metric of {METRICS}, got {metric!r}")
    check(bool(record["arms"]), "expected at least one arm, got none")
    arms: dict[str, dict[float, list[float]]] = {}
    for arm, cells in record["arms"].items():
        points = [float(point) for point in cells]
        check(len(set(points)) == len(points), f"{arm}: expected each {axis} once, got {points}")
        for point, values in zip(points, cells.values(), strict=True):
            check(
                axis != "sparsity" or 0.0 <= point < 1.0,
                f"{arm}: expected a sparsity in [0, 1), got {point}",
            )
            check_values(values, f"{arm} at {axis} {point:g}")
        arms[arm] = dict(sorted(zip(points, map(list, cells.values()), strict=True)))
    dense = list(record.get("dense", []))
    if dense:
        check_values(dense, "dense")
    return Curves(arms, dense, sorted({p for cells in arms.values() for p in cells}), metric, axis)


def check_values(values: Sequence[float], name: str) -> None:
    """At least one value, all finite."""
    check(len(values) > 0, f"{name}: expected at least one value, got none")
    finite = all(math.isfinite(value) for value in values)
    check(finite, f"{name}: expected finite values, got {list(values)}")


def spread(values: Sequence[float], kind: str = "range") -> float:
    """ "range": max - min; "std": the sample standard deviation (0 for one value)."""
    check(kind in SPREADS, f"expected a spread of {SPREADS}, got {kind!r}")
    if kind == "range":
        return max(values) - min(values)
    return statistics.stdev(values) if len(values) > 1 else 0.0


def best(cells: Mapping[str, Sequence[float]], metric: str, kind: str = "range") -> str | None:
    """The arm that is better than every other by more than the spread of both, or None.

        |mean(best) - mean(other)| > max(spread(best), spread(other))   for every other arm

    Notes:
        None with fewer than two arms, or where an arm has fewer than two seeds: then nothing is known of the spread.
    """
    if len(cells) < 2 or min(map(len, cells.values())) < 2:
        return None
    sign = 1.0 if metric == "accuracy" else -1.0
    first = max(cells, key=lambda arm: sign * statistics.fmean(cells[arm]))
    for arm in cells.keys() - {first}:
        gap = abs(statistics.fmean(cells[first]) - statistics.fmean(cells[arm]))
        if gap <= max(spread(cells[first], kind), spread(cells[arm], kind)):
            return None
    return first


def cell(values: Sequence[float], metric: str, kind: str = "range") -> str:
    """``95.80% (95.50-96.10)`` or ``1.234 (std 0.012)``; one value stands alone."""
    scale, digits, unit = (100.0, 2, "%") if metric == "accuracy" else (1.0, 3, "")
    mean = f"{scale * statistics.fmean(values):.{digits}f}{unit}"
    if len(values) == 1:
        return mean
    if kind == "std":
        return f"{mean} (std {scale * spread(values, kind):.{digits}f})"
    low, high = (f"{scale * value:.{digits}f}" for value in (min(values), max(values)))
    return f"{mean} ({low}-{high})"


def markdown(record: Mapping[str, Any], kind: str = "range") -> str:
    """The table and, under it, the sentence that says what its cells are.

    Args:
        record: as the module's first lines show.
        kind: "range" (min-max) or "std", in the cells and for what counts as best.
    """
    curves = read(record)
    winners = {point: _winner(curves, point, kind) for point in curves.points}
    rows = []
    for arm, cells in curves.arms.items():
        row = [arm, seeds([len(values) for values in cells.values()])]
        for point in curves.points:
            text = cell(cells[point], curves.metric, kind) if point in cells else "-"
            row.append(f"**{text}**" if winners[point] == arm else text)
        rows.append(row)
    header = ["arm", "seeds", *map(curves.label, curves.points)]
    return report.table(header, rows) + "\n\n" + caption(curves, kind)


def _winner(curves: Curves, point: float, kind: str) -> str | None:
    present = {arm: cells[point] for arm, cells in curves.arms.items() if point in cells}
    return best(present, curves.metric, kind)


def seeds(counts: Sequence[int]) -> str:
    """``3``, or ``2-3`` where the points of an arm have not equally many."""
    low, high = min(counts), max(counts)
    return str(low) if low == high else f"{low}-{high}"


def caption(curves: Curves, kind: str) -> str:
    """What the cells and columns are, and the dense network's value."""
    what = "accuracy" if curves.metric == "accuracy" else "loss in nats"
    brackets = "min-max" if kind == "range" else "standard deviation"
    text = (
        f"Columns: {curves.axis}. Cells: {what}, mean over the seeds ({brackets}); "
        "bold: better than every other arm by more than the larger spread of the two."
    )
    if curves.dense:
        count = len(curves.dense)
        dense = cell(curves.dense, curves.metric, kind)
        text += f" Dense: {dense}, {count} seed{'s' * (count != 1)}."
    return text
