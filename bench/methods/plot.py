"""The picture of a record of runs: accuracy or loss against sparsity, a line of means and a band of spread per arm."""

from __future__ import annotations

import statistics
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from bench.demo_plot import GREY
from bench.methods import table
from bench.methods.table import Curves

#: told apart by those who see few colours, too (Okabe and Ito's eight, then two more)
COLOURS = (
    *("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9", "#000000", "#b8a800"),
    *("#7b3294", "#8c510a"),
)
MARKERS = "os^Dv<>PX*"


def draw(record: Mapping[str, Any], path: Path | str, title: str = "") -> Path:
    """Draw ``record`` (as ``bench.methods.table`` describes it) as PNG."""
    curves = table.read(record)
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(figsize=(8, 5))
    lines(axes, curves)
    if title:
        axes.set_title(title, fontsize=11)
    figure.tight_layout()
    target = Path(path)
    target.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(target, dpi=110, format="png")
    pyplot.close(figure)
    return target


def lines(axes: Any, curves: Curves) -> None:
    """Mean line and min-max band of each arm, the dense mean as a dashed line with its band.

    Sparsities stand where their kept share does on a logarithmic axis: between 90 % and 99 % is as much room as between
    0 % and 90 %.
    """
    scale = 100.0 if curves.metric == "accuracy" else 1.0
    for i, (arm, cells) in enumerate(curves.arms.items()):
        style = {"color": COLOURS[i % len(COLOURS)]}
        places = [place(curves, point) for point in cells]
        means, low, high = (
            [scale * of(values) for values in cells.values()] for of in (statistics.fmean, min, max)
        )
        marker = MARKERS[i % len(MARKERS)]
        axes.plot(places, means, marker=marker, markersize=4, linewidth=1.4, label=arm, **style)
        axes.fill_between(places, low, high, alpha=0.15, linewidth=0, **style)
    if curves.dense:
        dense = [scale * value for value in curves.dense]
        axes.axhline(statistics.fmean(dense), color=GREY, linestyle="--", label="dense")
        axes.axhspan(min(dense), max(dense), color=GREY, alpha=0.15, linewidth=0)
    if curves.axis == "sparsity":
        axes.set_xscale("log")
        axes.invert_xaxis()
    axes.set_xticks([place(curves, p) for p in curves.points], map(curves.label, curves.points))
    axes.minorticks_off()
    axes.set(
        xlabel=f"{curves.axis} (line: mean over the seeds, band: min-max)",
        ylabel="accuracy, %" if curves.metric == "accuracy" else "loss, nats",
    )
    axes.grid(alpha=0.25)
    axes.legend(frameon=False, fontsize=8)


def place(curves: Curves, point: float) -> float:
    """Where a point stands on the axis: the kept share of a sparsity, else the point."""
    return 1.0 - point if curves.axis == "sparsity" else point
