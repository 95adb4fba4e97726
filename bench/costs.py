"""What a pass of each nm kernel costs: the data of the cost model in csrc/core/plan.h.

A pass goes over a 2:4 weight once for a block of tokens. Its cost is the slope of the time over the size of the weight,
for two weights that both fit into L2, so that neither the call nor memory is in it: nanoseconds a tile of 16 rows and a
slot. Every ISA level of the machine is measured. ``--write`` puts the figures into csrc/core/nm_costs.h.
"""

from __future__ import annotations

import argparse
import re
from collections.abc import Callable
from typing import Any

import torch

from bench import gate, report
from bench.linear.ours import linear_op
from evoprune_kernels import _ext, formats, measure, ops
from evoprune_kernels.measure import Measurement, quantile
from evoprune_kernels.ops.prepare import bind

TESTS = ["tests/test_plan.py"]
HEADER = gate.ROOT / "csrc" / "core" / "nm_costs.h"
LANES = {"baseline": 4, "avx2": 8, "avx512": 16}
#: tokens of a pass with rows in lanes, and with tokens in lanes
ROWS, PANELS = (1, 2, 4, 8), (16, 32, 64)
COLUMNS, FEW_ROWS, MANY_ROWS = 384, 128, 512
PLANNED = -1


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The options of ``python -m bench costs``."""
    parser.add_argument("--rounds", type=int, default=31)
    parser.add_argument("--write", action="store_true", help="update csrc/core/nm_costs.h")
    parser.add_argument("--quick", action="store_true", help="few rounds; a test of the program")
    parser.add_argument("--json", help="default: bench/results/costs.json")
    gate.add_argument(parser)


def forced(panel: int, run: Callable[[torch.Tensor], Any], x: torch.Tensor) -> Callable[[], None]:
    """A call of ``run(x)`` with every token in panels of this size (0: rows in lanes)."""

    def call() -> None:
        torch.ops.evoprune_raw.force_nm_panel(panel)
        run(x)

    return call


def contenders() -> dict[str, Callable[[], None]]:
    """``tokens/rows of the weight -> call``."""
    found = {}
    for rows in (FEW_ROWS, MANY_ROWS):
        weight = torch.randn(rows, COLUMNS)
        packed = formats.pack(weight * ops.select_nm(weight.abs(), 2, 4), "2:4")
        run = linear_op(bind(packed, "none"), None)
        for tokens in (*ROWS, *PANELS):
            panel = tokens if tokens in PANELS else 0
            found[f"{tokens}/{rows}"] = forced(panel, run, torch.randn(tokens, COLUMNS))
    return found


def slopes(samples: Measurement) -> dict[int, float]:
    """Tokens of a pass -> nanoseconds a tile and a slot: the median over the rounds."""
    work = (MANY_ROWS - FEW_ROWS) / 16 * COLUMNS / 2
    result = {}
    for tokens in (*ROWS, *PANELS):
        many, few = (samples.samples[f"{tokens}/{rows}"] for rows in (MANY_ROWS, FEW_ROWS))
        found = sorted((a - b) / work * 1e9 for a, b in zip(many, few, strict=True))
        result[tokens] = quantile(found, 0.5)
    return result


def measure_level(level: str, rounds: int) -> dict[str, Any]:
    """The costs of one ISA level."""
    _ext.set_isa_level(level)
    try:
        with torch.inference_mode(), measure.threads(1):
            samples = measure.interleave(
                contenders(), rounds=rounds, warmup=2, max_seconds=60, min_sample=1e-3
            )
    finally:
        torch.ops.evoprune_raw.force_nm_panel(PLANNED)
    cost = slopes(samples)
    return {"rows": [cost[t] for t in ROWS], "panels": [cost[t] for t in PANELS]}


def entry(level: str, costs: dict[str, Any]) -> str:
    """The line of csrc/core/nm_costs.h."""
    rows, panels = (", ".join(f"{c:.2f}" for c in costs[kind]) for kind in ("rows", "panels"))
    return f"    {{{LANES[level]}, {{{rows}}}, {{{panels}}}}},"


def write_header(levels: dict[str, dict[str, Any]]) -> None:
    """Replace the entries of the measured levels."""
    text = HEADER.read_text()
    for level, costs in levels.items():
        text = re.sub(rf"^    {{{LANES[level]}, .*$", entry(level, costs), text, flags=re.M)
    HEADER.write_text(text)


def run(args: argparse.Namespace) -> dict[str, Any]:
    """Measure, print and write; returns the record."""
    passed = gate.check(TESTS, skip=args.no_gate)
    before = _ext.isa_level()
    levels = {}
    try:
        for level in filter(LANES.get, _ext.isa_levels()):  # avx512vnni has avx512's nm kernels
            levels[level] = measure_level(level, 3 if args.quick else args.rounds)
    finally:
        _ext.set_isa_level(before)
    results = {"unit": "ns a tile of 16 rows and a slot", "levels": levels}
    record = report.build("costs", results, gate=passed, threads=1, quick=args.quick)
    header = ("level", *(f"{t} tokens" for t in (*ROWS, *PANELS)))
    rows = [[n, *(f"{c:.2f}" for c in (*v["rows"], *v["panels"]))] for n, v in levels.items()]
    print(report.table(header, rows))
    print("\n".join(entry(level, costs) for level, costs in levels.items()))
    if args.write:
        write_header(levels)
    print(f"\n{report.write(record, args.json)}")
    return record
