"""``python -m bench static``: what can be said of the CUDA kernels without a GPU, held to ``bench/budgets.toml``.

Compiled: registers, spills, stack, shared memory and resident blocks of every kernel and architecture. Simulated:
what the memory requests and instructions of every problem in ``problems.py`` come to. Counts, no times. A kernel that
exceeds its budget, or has none, is an error; ``--roofline`` adds what the counts would take at the limits of a GPU.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from typing import Any

from bench import report
from bench.gate import Gate
from bench.static import budgets, compiled, roofline, simulated
from bench.static.budgets import blocks_of, shapes_of
from bench.static.compiled import Compiled
from bench.static.problems import PROBLEMS
from bench.static.simulated import METRICS, Counts

GATE = Gate("not run: the simulator checks every access itself", (), "", 0.0)
LABEL = "counted: compiled and simulated, no times"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The options of ``python -m bench static``."""
    parser.add_argument("--arch", help="such as 80,90; default: those of setup.py")
    parser.add_argument(
        "--roofline",
        action="store_true",
        help="time at the limits of an A100 and an H100, calculated",
    )
    parser.add_argument("--json", help="default: bench/results/static.json")


def joined(values: Sequence[Any]) -> str:
    """One value where all are the same, else all of them."""
    return " ".join(map(str, values[:1] if len(set(values)) == 1 else values))


def compiled_rows(kernels: Sequence[Compiled], counts: Sequence[Counts]) -> list[list[str]]:
    """A row a kernel; a cell holds a number for every architecture."""
    rows = []
    for name in dict.fromkeys(kernel.kernel for kernel in kernels):
        ours = [kernel for kernel in kernels if kernel.kernel == name]
        shapes = shapes_of(ours[0], counts)
        blocks = [blocks_of(kernel, shapes) for kernel in ours]
        launched = ", ".join(
            f"{threads}" + (f" + {dynamic} B" if dynamic else "")
            for threads, dynamic in sorted(shapes)
        )
        rows.append(
            [name, *(joined([getattr(k, w) for k in ours]) for w in ("registers", "spills", "stack", "shared")),
             launched or "-", joined(["-" if b is None else b for b in blocks])]
        )  # fmt: skip
    return rows


def simulated_rows(counts: Sequence[Counts]) -> list[list[str]]:
    """A row a kernel of a problem."""
    rows = []
    for c in counts:
        found = simulated.metrics(c)
        cells = [f"{found[name]:.3f}" if name in found else "-" for name in METRICS]
        rows.append([c.problem.name, c.kernel, *cells])
    return rows


def roofline_rows(counts: Sequence[Counts]) -> list[list[str]]:
    """A row a kernel of a problem and a machine."""
    rows = []
    for c in counts:
        for machine in roofline.MACHINES:
            seconds, limit, next_ = roofline.bound(c, machine)
            rows.append(
                [c.problem.name, c.kernel, machine.name, report.duration(seconds), limit, next_]
            )
    return rows


def record_of(
    kernels: Sequence[Compiled], counts: Sequence[Counts], over: Sequence[str], with_roofline: bool
) -> dict[str, Any]:
    """What is written."""
    results: dict[str, Any] = {
        "compiled": [
            {**vars(k), "blocks": blocks_of(k, shapes_of(k, counts))} for k in kernels
        ],
        "simulated": [
            {"problem": c.problem.name, "kernel": c.kernel, "launches": c.launches,
             "items": c.problem.items, "unit": c.problem.unit, **simulated.metrics(c)}
            for c in counts
        ],
        "over_budget": list(over),
    }  # fmt: skip
    if with_roofline:
        results["roofline_calculated"] = [
            {"problem": c.problem.name, "kernel": c.kernel, "machine": machine.name,
             "bound": roofline.bound(c, machine)[1], "seconds_calculated": machine.limits(c)}
            for c in counts
            for machine in roofline.MACHINES
        ]  # fmt: skip
    return {**report.build("static", results, gate=GATE, threads=1), "label": LABEL}


def run(args: argparse.Namespace) -> dict[str, Any]:
    """Compile, simulate, print, write; ends with status 1 where a budget does not hold."""
    wanted = args.arch.split(",") if args.arch else compiled.archs()
    limits = budgets.load()
    counts = simulated.count_all(PROBLEMS)
    kernels = compiled.kernels(wanted)
    over = [line for kernel in kernels for line in budgets.check_compiled(kernel, counts, limits)]
    over += [line for c in counts for line in budgets.check_counts(c, limits)]
    over += limits.unused()
    print(f"compiled for sm_{', sm_'.join(wanted)} (one number where all are the same)")
    header = ("kernel", "registers", "spills", "stack", "shared", "threads + dynamic", "blocks/SM")
    print(report.table(header, compiled_rows(kernels, counts)))
    print("\nsimulated (exact counts, no times)")
    print(
        report.table(
            ("problem", "kernel", *(n for n, _ in METRICS.values())), simulated_rows(counts)
        )
    )
    if args.roofline:
        print("\ncalculated from these counts, never measured: time at the limits of a GPU")
        header = ("problem", "kernel", "GPU", "at least", "bound by", "next")
        print(report.table(header, roofline_rows(counts)))
    record = record_of(kernels, counts, over, args.roofline)
    print(f"\n{report.write(record, args.json)}")
    if over:
        print("\n".join(over), file=sys.stderr)
        sys.exit(1)
    return record
