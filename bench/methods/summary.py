"""The record of a ladder -> Markdown and picture, with a verdict on every published method against its controls."""

from __future__ import annotations

import statistics
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bench import report
from bench.methods import plot, table
from bench.methods.plans import CONTROLS, PUBLISHED

#: kinds of cells beside those of the ladder: title, axis
EXTRAS = {
    "noise": ("Gaussian noise on the test images", "sigma"),
    "fgsm": ("FGSM", "eps"),
    "pgd": ("PGD, 10 steps", "eps"),
    "part": ("Training on a share of the data, equal steps", "share"),
}


def curves(record: Mapping[str, Any], kind: str = "") -> dict[str, Any]:
    """What one table needs, ``{"arms": {arm: {point: values}}, "dense": values, ...}``; ``kind`` as in ``EXTRAS``."""
    results = record["results"]
    arms: dict[str, dict[str, list[float]]] = {}
    for key, cell in results["cells"].items():
        arm, point, _seed = key.split("|")
        before, colon, name = arm.rpartition(":")
        if before != kind or (not kind and (colon or ":" in point)):
            continue
        arms.setdefault(name, {}).setdefault(point, []).append(cell["value"])
    axis = EXTRAS[kind][1] if kind else "sparsity"
    found: dict[str, Any] = {"arms": arms, "metric": results["metric"], "axis": axis}
    if not kind:
        found["dense"] = arms.pop("dense", {}).get("0.0", [])
    return found


def two_of_four(record: Mapping[str, Any]) -> dict[str, list[float]]:
    """Arm -> values of the runs with 2:4 masks."""
    found: dict[str, list[float]] = {}
    for key, cell in record["results"]["cells"].items():
        arm, point, _seed = key.split("|")
        if ":" in point:
            found.setdefault(arm, []).append(cell["value"])
    return found


@dataclass(frozen=True)
class Verdict:
    """A published method at one sparsity against its best control; ``gap`` > 0: the method is better."""

    arm: str
    point: float
    control: str
    gap: float
    spread: float
    word: str


def verdicts(record: Mapping[str, Any]) -> list[Verdict]:
    """Each published method at each sparsity: its mean against the best control's, and the larger spread of the two."""
    found = curves(record)
    sign = 1.0 if found["metric"] == "accuracy" else -1.0
    given = []
    points = sorted({point for cells in found["arms"].values() for point in cells}, key=float)
    for arm in (a for a in PUBLISHED if a in found["arms"]):
        for point in points:
            controls = {
                c: found["arms"][c][point] for c in CONTROLS if point in found["arms"].get(c, {})
            }
            ours = found["arms"][arm].get(point)
            if ours is None or not controls:
                continue
            best = max(controls, key=lambda c: sign * statistics.fmean(controls[c]))
            gap = sign * (statistics.fmean(ours) - statistics.fmean(controls[best]))
            spread = max(table.spread(ours), table.spread(controls[best]))
            word = "within the spread"
            if min(len(ours), len(controls[best])) < 2:
                word = "one seed, so the spread is not known"
            elif abs(gap) > spread:
                word = "better than its best control" if gap > 0 else "WORSE than its best control"
            if reached := missed(record, arm, point):
                word = f"not comparable, its masks reach {100 * reached:.4g} %"
            given.append(Verdict(arm, float(point), best, gap, spread, word))
    return given


def sentence(verdict: Verdict, metric: str) -> str:
    """``evolution_llm_2024 at 60 %: -0.01 nats against random (spread 0.02): within the spread``."""
    scale, unit = (100.0, " points") if metric == "accuracy" else (1.0, " nats")
    return (
        f"{verdict.arm} at {100 * verdict.point:.4g} %: {scale * verdict.gap:+.2f}{unit} against {verdict.control}"
        f" (spread {scale * verdict.spread:.2f}): {verdict.word}"
    )


def short(record: Mapping[str, Any]) -> str:
    """What the README shows of a task: each published method, and in how many sparsities it beat its best control."""
    results = record["results"]
    scale, unit = (100.0, "points") if results["metric"] == "accuracy" else (1.0, "nats")
    rows = []
    given = verdicts(record)
    for arm in dict.fromkeys(v.arm for v in given):
        own = [v for v in given if v.arm == arm]
        counts = [
            sum(v.word.startswith(w) for v in own) for w in ("better", "within", "WORSE", "not")
        ]
        gaps = ", ".join(f"{scale * v.gap:+.2f} at {100 * v.point:.4g}%" for v in own)
        rows.append([arm, *counts, gaps])
    header = (
        "method",
        "better",
        "within the spread",
        "worse",
        "other sparsity",
        f"gap to the best control, {unit}",
    )
    dense = [c["value"] for k, c in results["cells"].items() if k.startswith("dense|")]
    head = (
        f"`{results['task']}`: {results['source']}; {results['seeds']} seeds, {results['steps']} +"
        f" {results['finetune']} steps for every arm. Dense after the same steps:"
        f" {table.cell(dense, results['metric'])}."
    )
    name = f"bench/results/methods-{results['task']}"
    rest = f"[Every arm]({name}.md), [as a picture]({name}.png)."
    return "\n\n".join([head, report.table(header, rows), rest, made(record)])


def made(record: Mapping[str, Any]) -> str:
    """How the figures were made."""
    machine, threads = record["machine"], record["threads"]
    return (
        f"`{record['command']}`, {record['label']} {record['date']} at {record['commit']}: {machine['cpu']},"
        f" {threads} thread{'s' * (threads != 1)}, torch {machine['torch']}."
    )


def markdown(record: Mapping[str, Any]) -> str:
    """The whole page: what was run, the tables, the verdicts, how far the targets were missed."""
    results = record["results"]
    train, validation, test = results["training"]
    parts = [
        f"# The pruning methods on {results['task']}",
        f"{results['source']}. {train} training, {validation} validation and {test} test samples."
        f" {results['steps']} steps of training and {results['finetune']} more for every arm, {results['seeds']} seeds;"
        f" the state kept is the best on the validation data. Scaled down: {results['scaled_down']}.",
        table.markdown(curves(record)),
    ]
    parts += _two_of_four(record)
    lines = [sentence(verdict, results["metric"]) for verdict in verdicts(record)]
    if lines:
        parts += ["## Against the best control", "\n".join(f"- {line}" for line in lines)]
    parts += _missed(record)
    for kind, (title, _axis) in EXTRAS.items():
        found = curves(record, kind)
        if found["arms"]:
            parts += [f"## {title}", table.markdown(found)]
    parts.append(made(record))
    return "\n\n".join(parts) + "\n"


def _two_of_four(record: Mapping[str, Any]) -> list[str]:
    found = two_of_four(record)
    if not found:
        return []
    metric = record["results"]["metric"]
    rows = [[arm, len(v), table.cell(v, metric)] for arm, v in found.items()]
    return ["## 2:4 masks", report.table(("arm", "seeds", metric), rows)]


def missed(record: Mapping[str, Any], arm: str, point: str) -> float | None:
    """The sparsity that is farthest from what was asked for, if it is more than 1 % away."""
    cells = record["results"]["cells"]
    found = [c["sparsity"] for k, c in cells.items() if k.startswith(f"{arm}|{point}|")]
    worst = max(found, key=lambda s: abs(s - float(point)))
    return worst if abs(worst - float(point)) > 0.01 else None


def _missed(record: Mapping[str, Any]) -> list[str]:
    """Arms whose masks do not have the sparsity that was asked for."""
    rows = []
    for key, cell in record["results"]["cells"].items():
        arm, point, seed = key.split("|")
        if ":" in arm or ":" in point or arm == "dense":
            continue
        if abs(cell["sparsity"] - float(point)) > 2e-3:
            rows.append([arm, point, seed, f"{cell['sparsity']:.4f}"])
    if not rows:
        return []
    return ["## Sparsity missed", report.table(("arm", "asked", "seed", "reached"), rows)]


def write(record: Mapping[str, Any], page: Path, picture: Path) -> None:
    """The page and the picture beside the record."""
    page.write_text(markdown(record))
    plot.draw(curves(record), picture, record["results"]["task"])
