"""The heat map of a record: time of the best peer over ours, a panel for each number of tokens."""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from bench.linear.cells import GRID_PATTERNS, GRID_SHAPES
from bench.linear.tables import best_peer


def ratios(record: Mapping[str, Any]) -> dict[tuple[int, str], dict[tuple[str, str], float]]:
    """(tokens, weights) -> (pattern, shape) -> time of the faster of dense and the best peer, over ours."""
    found: dict[tuple[int, str], dict[tuple[str, str], float]] = {}
    for entry in record["results"]["cells"]:
        best = best_peer(entry)
        rival = max(best[1] if best else 1.0, 1.0)
        panel = found.setdefault((entry["tokens"], entry["weights"]), {})
        ours = entry["contenders"]["ours"]["speedup"]["median"]
        panel[(entry["pattern"], entry["shape"])] = ours / rival
    return dict(sorted(found.items()))


def known_first(names: list[str], order: tuple[str, ...]) -> list[str]:
    """``names`` without repeats, in the order of the grid, others behind."""
    unique = list(dict.fromkeys(names))
    return [n for n in order if n in unique] + [n for n in unique if n not in order]


def draw(record: Mapping[str, Any], path: Path | str) -> Path:
    """Draw the heat map of ``record`` as PNG: blue where ours is faster, red where the best peer is."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    panels = ratios(record)
    entries = record["results"]["cells"]
    patterns = known_first([entry["pattern"] for entry in entries], GRID_PATTERNS)
    shapes = known_first([entry["shape"] for entry in entries], GRID_SHAPES)
    width = max(1.4, 0.75 * len(shapes))  # of a panel: its title is as wide
    size = (2.2 + width * len(panels), 1.6 + 0.3 * len(patterns))
    figure, axes = pyplot.subplots(1, len(panels), figsize=size, sharey=True, squeeze=False)
    for axis, ((tokens, weights), panel) in zip(axes[0], panels.items(), strict=True):
        fill(axis, panel, patterns, shapes)
        axis.set_title(f"{tokens} token{'s' * (tokens != 1)}, {weights}", fontsize=9)
    machine = record["machine"]
    figure.suptitle(
        f"Ours over the better of dense float32 and the best peer\n({machine['cpu']}, {machine['isa']}, "
        f"{record['threads']} thread{'s' * (record['threads'] != 1)})",
        fontsize=10,
    )
    figure.tight_layout()
    target = Path(path)
    target.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(target, dpi=100, metadata={"Software": None})
    pyplot.close(figure)
    return target


def fill(
    axis: Any, panel: Mapping[tuple[str, str], float], patterns: list[str], shapes: list[str]
) -> None:
    """One panel: a colour and a number for each cell that was measured."""
    grid = [[math.log2(panel.get((p, s), math.nan)) for s in shapes] for p in patterns]
    axis.imshow(grid, cmap="RdBu", vmin=-2, vmax=2, aspect="auto")
    for (pattern, shape), ratio in panel.items():
        at = shapes.index(shape), patterns.index(pattern)
        colour = "white" if abs(math.log2(ratio)) > 1.3 else "black"
        axis.text(*at, f"{ratio:.2f}", ha="center", va="center", fontsize=7, color=colour)
    axis.set_xticks(range(len(shapes)), shapes, rotation=40, ha="right", fontsize=7)
    axis.set_yticks(range(len(patterns)), patterns, fontsize=7)
