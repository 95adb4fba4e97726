"""The demo's picture: loss and sparsity over the steps, and characters per second before and after."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

BLUE, ORANGE, GREY = "#1f5fa8", "#d9661f", "#7a7a7a"


def draw(record: Mapping[str, Any], path: Path | str) -> Path:
    """Draw ``record`` (of ``bench.demo``) as PNG."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, (left, right) = pyplot.subplots(1, 2, figsize=(12, 4.5), width_ratios=(3, 2))
    losses(left, record["results"])
    speeds(right, record["results"]["speed"])
    machine = record["machine"]
    figure.suptitle(
        f"Character GPT pruned to {record['results']['plan']['pattern']} while it trains "
        f"({machine['cpu']}, one thread for the speeds)",
        fontsize=11,
    )
    figure.tight_layout()
    target = Path(path)
    target.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(target, dpi=110)
    pyplot.close(figure)
    return target


def losses(axes: Any, results: Mapping[str, Any]) -> None:
    """Training loss (running mean) of both runs, held-out loss as dots, sparsity on the right."""
    history = results["history"]
    shared = history["shared"]
    for name, colour, label in (("control", GREY, "dense control"), ("pruned", BLUE, "pruned")):
        part = history[name]
        steps = [*shared["steps"], *part["steps"]]
        axes.plot(steps, smooth([*shared["loss"], *part["loss"]]), color=colour, label=label)
        dots = [*shared["held_out"], *part["held_out"]]
        axes.plot(*zip(*dots, strict=True), "o", color=colour, markersize=4) if dots else None
    axes.set(xlabel="step", ylabel="loss, nats per character (dots: held out)")
    other = axes.twinx()
    sparsity = [*shared["sparsity"], *history["pruned"]["sparsity"]]
    other.plot(*zip(*sparsity, strict=True), color=ORANGE, linestyle="--")
    other.set(ylim=(0, 1), ylabel="share of zeros in the blocks (dashed)")
    axes.legend(loc="upper right", frameon=False)


def speeds(axes: Any, speed: Mapping[str, Any]) -> None:
    """Speed of the sparse model in units of the dense one."""
    names = list(speed)
    medians = [speed[name]["sparse"]["speedup"]["median"] for name in names]
    low = [m - speed[n]["sparse"]["speedup"]["p20"] for m, n in zip(medians, names, strict=True)]
    high = [speed[n]["sparse"]["speedup"]["p80"] - m for m, n in zip(medians, names, strict=True)]
    bars = axes.bar(names, medians, yerr=[low, high], color=BLUE, capsize=4, width=0.6)
    labels = [
        f"{m:.2f}x\n{speed[n]['dense']['characters_per_second']:,.0f} to\n"
        f"{speed[n]['sparse']['characters_per_second']:,.0f} /s"
        for m, n in zip(medians, names, strict=True)
    ]
    axes.bar_label(bars, labels, padding=6, fontsize=9)
    axes.axhline(1.0, color=GREY, linewidth=1)
    axes.set(ylabel="speed-up over the masked dense model", ylim=(0, max(medians) * 1.35))


def smooth(values: list[float], keep: float = 0.9) -> list[float]:
    """Running mean with the weight ``keep`` on the past, without the bias of its start."""
    mean, total, result = 0.0, 0.0, []
    for value in values:
        mean = keep * mean + (1 - keep) * value
        total = keep * total + (1 - keep)
        result.append(mean / total)
    return result
