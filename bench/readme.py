"""Writes the measured tables of README.md from bench/results, so that the two cannot differ.

Between ``<!-- begin NAME -->`` and ``<!-- end NAME -->`` stands what ``TABLES[NAME]`` makes of ``bench/results``.
"""

from __future__ import annotations

import argparse
import importlib
import json
import re
import statistics
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from bench import report
from bench.gate import ROOT

README = ROOT / "README.md"
#: ISA levels whose linear layers have a table
LEVELS = ("avx512", "avx2")
#: tasks of ``bench methods`` that have a table
METHOD_TASKS = ("mnist", "fashion", "fashion-conv", "chargpt", "chargpt-short")
#: benchmarks whose table stands as they print it
TIMED = ("conv", "gate_skip", "ssprop")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """``--check``."""
    parser.add_argument(
        "--check", action="store_true", help="fail if README.md differs, write nothing"
    )


def demo(record: dict[str, Any]) -> str:
    """Speeds and losses of the demo."""
    from bench.demo import SPEED_HEADER, speed_rows

    results = record["results"]
    plan, loss = results["plan"], results["loss"]
    lines = [
        f"A character GPT of {results['parameters']:,} parameters, pruned to `{plan['pattern']}` "
        f"({results['sparsity']:.0%} zeros) in {plan['steps']} steps. Held-out loss in nats per character: "
        f"{loss['before_pruning']:.3f} dense before pruning began (step {plan['start']}), "
        f"{loss['dense_control']:.3f} dense control, {loss['pruned']:.3f} pruned (both step {plan['steps']}).",
        "",
        report.table(SPEED_HEADER, speed_rows(results["speed"])),
    ]
    return "\n".join([*lines, "", report.source(record)])


def digits(record: dict[str, Any]) -> str:
    """Accuracies and speeds of the digits."""
    results = record["results"]
    rows = []
    for name, scores in results["accuracy"].items():
        rows.append(
            [name, f"{statistics.mean(scores):.2%}", " ".join(f"{score:.2%}" for score in scores)]
        )
    speed = "; ".join(
        f"{count} image{'s' * (count != '1')}: {e['speedup']['median']:.2f}x "
        f"({e['speedup']['p20']:.2f}-{e['speedup']['p80']:.2f})"
        for count, e in results["speed"].items()
    )
    head = f"Digits, `{results['pattern']}` at {results['sparsity']:.0%}. Sparse against masked dense: {speed}."
    return "\n".join(
        [head, "", report.table(("model", "accuracy", "per seed"), rows), "", report.source(record)]
    )


def linear(record: dict[str, Any]) -> str:
    """The compact table of ``bench linear`` at one ISA level, and where the rest is."""
    from bench.linear import tables

    name = f"bench/results/linear-{record['machine']['isa']}"
    rest = f"[Every cell and every peer]({name}.md), [ours over the best peer as a picture]({name}.png)."
    return "\n\n".join([tables.summary(record), rest, report.source(record)])


def model(record: dict[str, Any]) -> str:
    """The table of ``bench model``."""
    from bench.model import HEADER, row

    results = record["results"]
    head = f"{results['layers']} transformer blocks of width {results['width']}, {results['parameters']:,} parameters."
    rows = [row(entry) for entry in results["runs"]]
    return "\n".join([head, "", report.table(HEADER, rows), "", report.source(record)])


def optim(record: dict[str, Any]) -> str:
    """The table of ``bench optim`` and the targets it was held to."""
    from bench.optim import section_lines

    results = record["results"]
    rows = [
        [
            name,
            f"{row['ns_per_parameter']:.3f}",
            f"{row['over_torch_fused']['median']:.2f} "
            f"({row['over_torch_fused']['p20']:.2f}-{row['over_torch_fused']['p80']:.2f})",
            f"{row['over_ours']['median']:.2f} ({row['over_ours']['p20']:.2f}-{row['over_ours']['p80']:.2f})",
        ]
        for name, row in results["contenders"].items()
    ]
    header = ("contender", "ns per parameter", "time over torch fused", "time over ours")
    missed = [
        f"{t['what']} {t['target']}: {t['measured']:.2f}"
        for t in results["targets"]
        if not t["holds"]
    ]
    lines = [
        f"One step of {results['parameters']:,} float32 parameters.",
        "",
        report.table(header, rows),
        "",
    ]
    lines += section_lines(results)
    if missed:
        lines += [f"Targets that do not hold here: {'; '.join(missed)}.", ""]
    return "\n".join([*lines, report.source(record)])


#: problems of ``bench static`` whose kernels stand in README.md; all of them stand in static.md
STATIC_SHOWN = (
    "adamw_step 3x20480 f32",
    "sgd_step 3x20480 f32",
    "nm_linear 128 tokens 128x256 f16",
    "nm_linear 1 tokens 256x1024 f16",
    "nm_w8a8_linear",
    "block_linear 128 tokens 128x128 64x64 f16",
    "block_linear_dx 128 tokens 128x128 64x64 f16",
    "block_linear_dw 128 tokens 128x128 64x64 f16",
    "bitmask_linear 1 tokens 64x2048 30 % f16",
    "nm_select_pack 128x1024 2:4 f16",
    "select_nm 64x1024 2:4 f32",
    "select_topk 64x1024 f32",
    "channel_gate_backward 2x16x56x56",
)


def static(record: dict[str, Any]) -> str:
    """The main kernels of ``bench static``: what they move, what their inner loop costs, what they take."""
    entries = record["results"]["simulated"]
    shown = [e for e in entries if e["problem"].startswith(STATIC_SHOWN)]
    over = record["results"]["over_budget"]
    built = record["results"]["compiled"]
    spilled = sorted({f"`{e['kernel']}` on sm_{e['arch']}" for e in built if e["spills"]})
    spills = (
        f"{len(spilled)} spill a few registers: {', '.join(spilled)}" if spilled else "none spills"
    )
    head = (
        f"{len(entries)} kernels of {len({e['problem'] for e in entries})} problems; "
        f"{len(over) or 'none'} of them over budget. Of {len(built)} compiled kernels (5 architectures) "
        f"{spills}. The main ones:"
    )
    rest = "[Every kernel, registers and occupancy](bench/results/static.md)."
    return "\n\n".join([head, static_table(record, shown), rest, static_source(record)])


def static_source(record: dict[str, Any]) -> str:
    """How the counts were made; the machine does not matter to them."""
    return f"`{record['command']}`, {record['label']}, {record['date']} at {record['commit']}."


def static_table(record: dict[str, Any], entries: Sequence[dict[str, Any]]) -> str:
    """A row a kernel of a problem: exact counts of the simulator, and what ptxas gave it on sm_80."""
    from bench.static.simulated import METRICS

    compiled = {e["kernel"]: e for e in record["results"]["compiled"] if e["arch"] == "80"}
    rows = []
    for entry in entries:
        counts = [f"{entry[name]:.2f}" if name in entry else "-" for name in METRICS]
        built = compiled.get(entry["kernel"], {})
        own = [str(built.get(name) or "-") for name in ("registers", "blocks")]
        rows.append([entry["problem"], f"`{entry['kernel']}`", *counts, *own])
    header = (
        "problem",
        "kernel",
        *(name for name, _ in METRICS.values()),
        "registers",
        "blocks/SM",
    )
    return report.table(header, rows)


def static_page(record: dict[str, Any]) -> str:
    """Every kernel: counts, then registers, spills, stack and shared memory for each architecture."""
    results = record["results"]
    names = ("kernel", "arch", "registers", "spills", "stack", "shared", "blocks")
    rows = [["-" if e[name] is None else e[name] for name in names] for e in results["compiled"]]
    parts = [
        "# CUDA kernels: counted, not timed",
        static_source(record),
        "## Simulated: exact counts\n\n" + static_table(record, results["simulated"]),
        "## Compiled: what ptxas gave\n\n" + report.table(names, rows),
    ]
    if calculated := results.get("roofline_calculated"):
        head = "## Calculated from the counts, never measured: time at the limits of a GPU\n\n"
        limits = [
            [e["problem"], f"`{e['kernel']}`", e["machine"],
             report.duration(max(e["seconds_calculated"].values())), e["bound"]]
            for e in calculated
        ]  # fmt: skip
        columns = ("problem", "kernel", "GPU", "at least", "bound by")
        parts.append(head + report.table(columns, limits))
    return "\n\n".join(parts) + "\n"


def methods(record: dict[str, Any]) -> str:
    """What became of the papers' methods on one task."""
    from bench.methods import summary

    return summary.short(record)


def gates(record: dict[str, Any]) -> str:
    """An op and memory format a row: the medians of ``bench gates`` over its layers."""
    results = record["results"]["ops"]
    rows = []
    for op, layout in dict.fromkeys((row["op"], row["layout"]) for row in results):
        of = [row for row in results if (row["op"], row["layout"]) == (op, layout)]
        medians = sorted(row["speedup"]["median"] for row in of)
        faster = sum(row["speedup"]["p20"] > 1 for row in of)
        cells = [f"{each:.2f}x" for each in (medians[0], statistics.median(medians), medians[-1])]
        rows.append([op, layout, *cells, f"{faster} of {len(of)}"])
    noise = [row["control"][end] for row in results for end in ("p20", "p80")]
    header = ("op", "memory", "worst layer", "median", "best layer", "faster, p20 too")
    rest = (
        f"Speed-ups over torch; A/A of the single layers {min(noise):.2f}-{max(noise):.2f}. "
        f"[Every layer](bench/results/gates.json)."
    )
    return "\n\n".join([report.table(header, rows), rest, report.source(record)])


def timed(name: str) -> Callable[[dict[str, Any]], str]:
    """The table that ``python -m bench NAME`` prints, from its record."""

    def table(record: dict[str, Any]) -> str:
        module = importlib.import_module(f"bench.{name}")
        rows = report.table(module.HEADER, module.table_rows(record["results"]))
        return "\n\n".join([rows, report.source(record)])

    return table


#: marker -> what makes its text from bench/results/<marker>.json
TABLES: dict[str, Callable[[dict[str, Any]], str]] = {
    "demo": demo,
    "digits": digits,
    **{f"linear-{isa}": linear for isa in LEVELS},
    "model": model,
    "optim": optim,
    "static": static,
    **{f"methods-{task}": methods for task in METHOD_TASKS},
    "gates": gates,
    **{name.replace("_", "-"): timed(name) for name in TIMED},
}


def render(text: str) -> str:
    """``text`` with every marked part made anew.

    Raises:
        ValueError: for a marker without a table, or one without its end.
    """
    names = re.findall(r"<!-- begin (\S+) -->", text)
    for name in names:
        marked = re.compile(
            rf"(<!-- begin {re.escape(name)} -->\n).*?(<!-- end {re.escape(name)} -->)", re.S
        )
        if name not in TABLES or not marked.search(text):
            raise ValueError(
                f"README marker {name!r}: expected one of {sorted(TABLES)} with its end"
            )
        path = report.RESULTS / f"{name}.json"
        body = "Not measured yet.\n"
        if path.exists():
            body = TABLES[name](json.loads(path.read_text())) + "\n"
        text = marked.sub(lambda m, body=body: m[1] + body + m[2], text)
    return text


def run(args: argparse.Namespace) -> dict[str, Any]:
    """Write README.md, or check it."""
    old = README.read_text()
    new = render(old)
    if args.check and new != old:
        sys.exit("README.md differs from bench/results: run `python -m bench readme`")
    if not args.check:
        README.write_text(new)
        for isa in LEVELS:
            write_page(report.RESULTS / f"linear-{isa}.json")
        for task in METHOD_TASKS:
            write_methods(report.RESULTS / f"methods-{task}.json")
        counted = report.RESULTS / "static.json"
        if counted.exists():
            counted.with_suffix(".md").write_text(static_page(json.loads(counted.read_text())))
    return {}


def write_methods(path: Path) -> None:
    """The page and the picture beside a record of ``bench methods``, where there is one."""
    from bench.methods import summary

    if path.exists():
        record = json.loads(path.read_text())
        summary.write(record, path.with_suffix(".md"), path.with_suffix(".png"))


def write_page(path: Path) -> None:
    """The full Markdown page and the picture beside a record of ``bench linear``, where there is one."""
    from bench.linear import plot, tables

    if path.exists():
        record = json.loads(path.read_text())
        path.with_suffix(".md").write_text(tables.page(record, report.source(record)))
        plot.draw(record, path.with_suffix(".png"))
