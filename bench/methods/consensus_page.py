"""The record of ``bench.methods.consensus`` -> Markdown with a verdict on every target, and a picture."""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from bench import report
from bench.methods.plot import COLOURS, MARKERS
from bench.methods.summary import made

#: what the issue asks of the gates: connections removed, points lost, polarization, points between static and dynamic
TARGETS = {"removed": 0.5, "lost": 1.0, "polarization": 0.01, "gap": 0.1}
GATED = ("consensus_gates", "consensus_gates_dynamic")


def groups(record: Mapping[str, Any]) -> dict[str, dict[str, dict[str, Any]]]:
    """``"arm 50%"`` -> seed -> cell."""
    found: dict[str, dict[str, dict[str, Any]]] = {}
    for key, cell in record["results"]["cells"].items():
        arm, point, seed = key.split("|")
        name = arm if float(point) == 0 else f"{arm} {100 * float(point):.4g}%"
        found.setdefault(name, {})[seed] = cell
    return found


def lost(cells: Mapping[str, Any], dense: Mapping[str, Any]) -> list[float]:
    """Points of accuracy below the dense network of the same seed."""
    return [100 * (dense[s]["value"] - c["value"]) for s, c in cells.items() if s in dense]


def shown(values: Sequence[float], digits: int = 2, unit: str = "") -> str:
    """``83.10 (82.90-83.40)``: mean, least and most; ``-`` for none."""
    if not values:
        return "-"
    texts = [f"{v:.{digits}f}" for v in (statistics.fmean(values), min(values), max(values))]
    if texts[1] == texts[2]:
        return texts[0] + unit
    return f"{texts[0]}{unit} ({texts[1]} to {texts[2]})"


def numbers(cells: Mapping[str, Any], name: str) -> list[float]:
    """A number of every seed that has it."""
    return [c["numbers"][name] for c in cells.values() if name in c["numbers"]]


def gaps(cells: Mapping[str, Any]) -> list[float]:
    """Points between the frozen and the learned gates, on the validation images."""
    pairs = zip(numbers(cells, "static/accuracy"), numbers(cells, "dynamic/accuracy"), strict=False)
    return [100 * (static - dynamic) for static, dynamic in pairs]


def share(cells: Mapping[str, Any], what: str) -> list[float]:
    """How much is left of the parameters or FLOPs, in %."""
    pairs = [c["compaction"].get(what) for c in cells.values() if c["compaction"]]
    return [100 * pair[1] / pair[0] for pair in pairs if pair]


def results_table(record: Mapping[str, Any]) -> str:
    """One row an arm."""
    found = groups(record)
    dense = found.get("dense", {})
    rows = []
    for name, cells in found.items():
        gated = [c for c in cells.values() if "gated" in c]
        same = max((abs(c["gated"] - c["value"]) for c in gated), default=None)
        rows.append(
            [
                name,
                len(cells),
                shown([100 * c["value"] for c in cells.values()], unit="%"),
                "" if name == "dense" else shown(lost(cells, dense)),
                shown([100 * c["sparsity"] for c in gated], 1, "%"),
                shown(share(cells, "parameters"), 1, "%"),
                shown(share(cells, "flops"), 1, "%"),
                shown(numbers(cells, "polarization"), 4),
                shown(gaps(cells)),
                "-" if same is None else f"{100 * same:.2f}",
                shown([c["cpu_seconds"] for c in cells.values()], 0),
            ]
        )
    header = (
        "arm", "seeds", "test accuracy", "points lost", "connections removed", "parameters left", "FLOPs left",
        "polarization", "static - learned", "compacted - gated", "CPU s",
    )  # fmt: skip
    return report.table(header, rows)


NOTES = (
    "Mean over the seeds (least to most). Points lost: against dense of the same seed. Connections: weights of all"
    " convolutions and linear layers of the compacted network. Polarization: mean of g (1 - g) over all gates at the"
    " end of the training with gates, g the share of validation images for which a gate is open; static gates agree on"
    " all images: theirs is 0 by construction. Static - learned: points of validation accuracy of the frozen gates"
    " above the learned ones at that moment, before the epoch under fixed gates. Compacted - gated: largest difference"
    " of test accuracy. CPU s: of one process on a machine that had other work; not a measurement of training speed."
)


def verdicts(record: Mapping[str, Any]) -> list[str]:
    """Each target for each gated arm, met or missed."""
    found = groups(record)
    dense = found.get("dense", {})
    lines = []
    for name, cells in found.items():
        if name.split(" ")[0] not in GATED:
            continue
        removed = min(c["sparsity"] for c in cells.values())
        points = lost(cells, dense)
        polar, gap = numbers(cells, "polarization"), [abs(g) for g in gaps(cells)]
        checks = [
            (
                removed >= TARGETS["removed"],
                f"{100 * removed:.1f} % of the connections removed at least (target 50 %)",
            )
        ]
        if points:
            mean, worst = statistics.fmean(points), max(points)
            text = f"{mean:.2f} points lost in the mean, {worst:.2f} at most (target 1.0)"
            checks.append((mean <= TARGETS["lost"], text))
        if polar:
            text = f"polarization {max(polar):.4f} at most (target below 0.01)"
            checks.append((max(polar) < TARGETS["polarization"], text))
            text = f"static and learned gates {max(gap):.2f} points apart at most (target 0.1)"
            checks.append((max(gap) <= TARGETS["gap"], text))
        parts = [f"{'met' if ok else 'MISSED'}: {text}" for ok, text in checks]
        lines.append(f"{name}: " + "; ".join(parts) + ".")
    return lines


def controls(record: Mapping[str, Any]) -> list[str]:
    """Mean accuracy of each arm beside its control: the gates beside random ones, ssProp beside random channels."""
    found = groups(record)
    pairs = [
        (n, n.replace(n.split(" ")[0], "random_gates")) for n in found if n.split(" ")[0] in GATED
    ]
    pairs += [(n, "bn_polarization 50%") for n in found if n == "consensus_gates 50%"]
    pairs += [(n, "ssprop_random") for n in found if n == "ssprop_bar"]
    lines = []
    for ours, control in pairs:
        if control not in found:
            continue
        a, b = ([c["value"] for c in found[n].values()] for n in (ours, control))
        gap = 100 * (statistics.fmean(a) - statistics.fmean(b))
        spread = 100 * max(max(a) - min(a), max(b) - min(b))
        word = "within the spread"
        if min(len(a), len(b)) < 2:
            word = "one seed, so the spread is not known"
        elif abs(gap) > spread:
            word = "better than its control" if gap > 0 else "WORSE than its control"
        lines.append(f"{ours} against {control}: {gap:+.2f} points (spread {spread:.2f}): {word}.")
    return lines


def latency_table(found: Mapping[str, Any]) -> str:
    """Time and energy of an image, dense and compacted."""
    rows = []
    for row in found["rows"]:
        ratio, joules = row["speedup"], row["joules_per_image"]
        control = row.get("control")
        rows.append(
            [
                row["batch"],
                row["network"],
                report.duration(row["seconds"]["median"] / row["batch"]),
                f"{ratio['median']:.2f} ({ratio['p20']:.2f}-{ratio['p80']:.2f})",
                f"{control['p20']:.2f}-{control['p80']:.2f}" if control else "",
                "-" if joules is None else f"{1e3 * joules:.3g} mJ",
            ]
        )
    header = ("images", "network", "time an image", "speed-up (p20-p80)", "A/A", "energy an image")
    return report.table(header, rows)


def markdown(record: Mapping[str, Any]) -> str:
    """The whole page."""
    results = record["results"]
    train, validation, test = results["training"]
    shape = results["model"]
    name = f"ResNet-{6 * shape['blocks'] + 2} of width {shape['width']}"
    parts = [
        f"# Consensus gates and ssProp on {results['task']}",
        f"{name}, {results['source']}. {train} training, {validation} validation and {test} test images,"
        f" {'x'.join(map(str, results['image']))}. {results['steps']} steps of training and {results['finetune']} more"
        f" for every arm, {results['seeds']} seed{'s' * (results['seeds'] != 1)}. Scaled down:"
        f" {results['scaled_down']}. Gates on the first convolution of every block.",
        results_table(record),
        NOTES,
    ]
    for title, lines in (("Targets", verdicts(record)), ("Controls", controls(record))):
        if lines:
            parts += [f"## {title}", "\n".join(f"- {line}" for line in lines)]
    parts.append("## Latency and energy of the compacted networks")
    found = results.get("latency")
    if found:
        parts += [
            latency_table(found),
            f"Channels last, random weights of the shapes of seed 0. Energy: {found['energy']}."
            f"{' Quick: a test of the program, no figure.' if found['quick'] else ''} `{found['command']}`,"
            f" {found['date']} at {found['commit']}: {found['machine']['cpu']},"
            f" {found['threads']} thread(s), load {found['load']:.1f} before.",
        ]
    else:
        parts.append(
            f"Not measured yet: `python -m bench methods --task {results['task']} --latency`."
        )
    parts.append(made(record))
    return "\n\n".join(parts) + "\n"


def draw(record: Mapping[str, Any], path: Path) -> None:
    """Test accuracy against connections removed: a mark a run, a line between the means of an arm."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(figsize=(8, 5))
    arms: dict[str, list[dict[str, Any]]] = {}
    for name, cells in groups(record).items():
        arms.setdefault(name.split(" ")[0], []).append(cells)
    for i, (arm, points) in enumerate(arms.items()):
        style = {"color": COLOURS[i % len(COLOURS)], "marker": MARKERS[i % len(MARKERS)]}
        every = [cell for cells in points for cell in cells.values()]
        axes.plot(
            [100 * c["sparsity"] for c in every], [100 * c["value"] for c in every],
            linestyle="", markersize=5, alpha=0.8, label=arm, **style,
        )  # fmt: skip
        means = [
            [
                100 * statistics.fmean(c[key] for c in cells.values())
                for key in ("sparsity", "value")
            ]
            for cells in points
        ]
        axes.plot(*zip(*means, strict=True), color=style["color"], linewidth=1)
    axes.axvline(100 * TARGETS["removed"], color="#999999", linestyle=":")
    axes.set(
        xlabel="connections removed, % (a mark a run; lines: means over the seeds)",
        ylabel="test accuracy, %",
        title=record["results"]["task"],
    )
    axes.grid(alpha=0.25)
    axes.legend(frameon=False, fontsize=8)
    figure.tight_layout()
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=110, format="png")
    pyplot.close(figure)


def write(record: Mapping[str, Any], page: Path, picture: Path) -> None:
    """The page and the picture beside the record."""
    page.write_text(markdown(record))
    draw(record, picture)
