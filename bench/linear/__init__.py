"""Sparse linear layers against the dense one and every peer that is installed, per shape, pattern and tokens.

``y = x W^T``; contenders: dense ``F.linear`` in float32 (twice: the A/A control), our packed weight, and the peers of
``bench/peers``. Sparse libraries get their activations feature-major and keep their result so, with no transpose
counted, in their favour.

    cold   a stack of equal layers, every one with its own weights in memory, together far beyond the last-level cache:
           what a model does at few tokens. One sample is one pass over the stack; figures are per layer.
    hot    one layer again and again: for many tokens, where arithmetic decides. At few tokens it is a different
           question (the weight sits in a cache), so it is asked only with --hot and has its own rows.

    (nothing)   a few cells, in a few minutes, to bench/out
    --grid      every cell of the README, in hours, to bench/results; --resume goes on where it stopped, and so do
                pieces (--grid --resume --shapes 768x768); page and picture are made anew at the end
    --scaling   ours with two threads against one, on compute-bound cells
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch

from bench import gate, readme, report, roofline
from bench.linear import cells, records, scaling, tables, timing
from bench.linear.cells import Cell, select, split_pattern
from bench.linear.ours import stored_of
from bench.peers import ADAPTERS, survey
from evoprune_kernels import formats, measure
from evoprune_kernels.formats import BitmaskWeight, BlockWeight, NMWeight

__all__ = ["TESTS", "Cell", "add_arguments", "run", "select", "split_pattern"]

TESTS = {
    NMWeight: "tests/ops/test_nm_linear.py",
    BlockWeight: "tests/ops/test_block_linear.py",
    BitmaskWeight: "tests/ops/test_bitmask_linear.py",
}
COMMON_TESTS = "tests/ops/test_linear.py"
STORED_TESTS = "tests/ops/test_stored_dtypes.py"
W8A8_TESTS = "tests/ops/test_w8a8_linear.py"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The options of ``python -m bench linear``."""
    parser.add_argument("--grid", action="store_true", help="every shape and pattern of the README")
    parser.add_argument("--resume", action="store_true", help="keep the cells that are still good")
    parser.add_argument("--scaling", action="store_true", help="two threads against one")
    parser.add_argument("--shapes", nargs="+", metavar="OUTxIN")
    parser.add_argument("--tokens", nargs="+", type=int)
    parser.add_argument("--patterns", nargs="+", metavar="PATTERN[@PERCENT][+STORED]")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--seconds", type=float, default=4.0, help="about this long a cell")
    parser.add_argument(
        "--cold-mb",
        type=int,
        help=f"dense MiB of a cold stack (default {cells.COLD_MB}, with --grid {cells.GRID_COLD_MB})",
    )
    parser.add_argument(
        "--hot", action="store_true", help="also few tokens with one layer in a cache"
    )
    parser.add_argument("--no-peers", action="store_true", help="leave out every peer")
    parser.add_argument(
        "--deepsparse", action="store_true", help="also DeepSparse (evaluation licence)"
    )
    parser.add_argument(
        "--quick", action="store_true", help="one small cell; a test of the program"
    )
    parser.add_argument("--json", help="default: bench/results with --grid, else bench/out")
    gate.add_argument(parser)


def complete(args: argparse.Namespace) -> None:
    """Fill in what the options leave open."""
    few = (scaling.SHAPES, scaling.TOKENS) if args.scaling else (cells.SHAPES, cells.TOKENS)
    args.shapes = args.shapes or list(cells.GRID_SHAPES if args.grid else few[0])
    args.tokens = args.tokens or list(few[1])
    args.patterns = args.patterns or list(cells.GRID_PATTERNS if args.grid else cells.PATTERNS)
    args.cold_mb = args.cold_mb or (cells.GRID_COLD_MB if args.grid else cells.COLD_MB)
    if args.quick:
        args.shapes, args.tokens, args.patterns = ["64x48"], [1, 32], args.patterns[:1]
        args.cold_mb, args.rounds = 0, 3


def run(args: argparse.Namespace) -> dict[str, Any]:
    """Measure, print and write after every cell; returns the record."""
    complete(args)
    passed = gate.check(tests_of(args.patterns), skip=args.no_gate)
    if args.scaling:
        return scaling.run(args, passed)
    path = Path(args.json or records.default_path(grid=args.grid, threads=args.threads))
    before = records.previous(path, threads=args.threads) if args.resume else None
    good = records.still_good(before, seconds=args.seconds)
    groups = records.missing_cells(cells.groups(args), good)
    peers = survey(args.threads, deepsparse=args.deepsparse, without=args.no_peers)
    announce(groups, args, peers, len(good))
    roof = limits(args, before)
    results: dict[str, Any] = {
        "dtype": "float32",
        "peers": peers,
        "roofline": roof.to_dict() if roof else None,
        "cells": [entry | {"roof": timing.against_roof(entry, roof)} for entry in good],
    }
    record = report.build("linear", results, gate=passed, threads=args.threads, quick=args.quick)
    record["results"] = results
    with measure.threads(args.threads), torch.inference_mode():
        for entry in progress(measured(groups, args, peers), sum(map(len, groups))):
            entry |= {"commit": record["commit"], "date": record["date"]}
            entry |= {"seconds_a_cell": args.seconds, "roof": timing.against_roof(entry, roof)}
            results["cells"] = records.in_order([*results["cells"], entry])
            report.write(record, path)
    if args.grid:
        print("\n" + tables.summary(record))
        readme.write_page(report.write(record, path))
    else:
        print("\n" + report.table(tables.HEADER, [tables.row(e) for e in results["cells"]]))
    print(f"\n{report.write(record, path)}")
    return record


def announce(
    groups: list[list[Cell]], args: argparse.Namespace, peers: dict[str, str], kept: int
) -> None:
    """Say which peers are there, how much there is to do, and how long it may take."""
    for name, reason in peers.items():
        print(f"peer {name}: {reason}")
    estimate = sum(expected_seconds(cell, args) for group in groups for cell in group)
    count = sum(map(len, groups))
    print(f"{count} cells to measure, {kept} kept; about {minutes(estimate)}", flush=True)


def limits(args: argparse.Namespace, before: dict[str, Any] | None) -> roofline.Roofline | None:
    """This machine's limits: measured now, or in the record that is resumed where that found more."""
    found = roofline.measure_roofline(args.threads, quick=args.quick)
    known = before and before["results"].get("roofline")
    return found.merge(roofline.Roofline(**known)) if found and known else found


def tests_of(patterns: list[str]) -> list[str]:
    """The tests that stand behind the figures of ``patterns``; a pattern that means nothing is refused here."""
    for pattern in patterns:
        stored_of(pattern)
    kinds = dict.fromkeys(formats.format_of(split_pattern(pattern)[0]) for pattern in patterns)
    stored = [STORED_TESTS] if any("+" in pattern for pattern in patterns) else []
    w8a8 = [W8A8_TESTS] if any(stored_of(pattern).w8a8 for pattern in patterns) else []
    return [COMMON_TESTS, *(TESTS[kind] for kind in kinds), *stored, *w8a8]


def measured(
    groups: list[list[Cell]],
    args: argparse.Namespace,
    peers: dict[str, str],
) -> Iterator[dict[str, Any]]:
    """The entries of all cells; a group's stacks are freed before the next one is built."""
    present = [ADAPTERS[name] for name, reason in peers.items() if reason.startswith("present")]
    for group_cells in groups:
        group = timing.Group(group_cells, args, present)
        try:
            yield from timing.measure_group(group)
        finally:
            group.close()


def progress(entries: Iterator[dict[str, Any]], count: int) -> Iterator[dict[str, Any]]:
    """One line a cell: its row, and how long the rest may take at this pace."""
    start = time.monotonic()
    for done, entry in enumerate(entries, 1):
        yield entry
        left = (time.monotonic() - start) / done * (count - done)
        row = "  ".join(tables.row(entry))
        print(f"[{done}/{count}, {minutes(left)} left]  {row}", flush=True)


def expected_seconds(cell: Cell, args: argparse.Namespace) -> float:
    """A guess, from runs on one machine: about ten contenders in eight rounds or more, after building their stacks."""
    weights = cell.shape[0] * cell.shape[1] * cell.layers
    dense = 4 * weights / 12e9 + 2 * weights * cell.tokens / 60e9
    contenders, building = (3, 2) if args.no_peers else (10, 9)
    timed = max(args.seconds, 5 * contenders * dense) + 3 * contenders * dense
    return timed + building * 4e-9 * weights + 0.5


def minutes(seconds: float) -> str:
    """``45 s``, ``12 min`` or ``2.5 h``."""
    if seconds < 90:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"
