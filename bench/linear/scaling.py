"""How ours scales to two threads: ours and dense with one and with two, all in the same interleaved rounds.

``scaling = time with one thread / time with two``, round by round. Only cells whose arithmetic decides: many tokens.
"""

from __future__ import annotations

import argparse
import os
from typing import Any

import torch
from torch.nn import functional as F

from bench import report, targets
from bench.gate import Gate
from bench.linear import records
from bench.linear.cells import Cell, groups, select, split_pattern
from bench.linear.ours import our_stack, stored_of
from bench.linear.timing import check
from evoprune_kernels import measure

TOKENS = (128, 512)
SHAPES = ("3072x768", "4096x4096")
HEADER = (
    "out x in",
    "pattern",
    "tokens",
    "ours",
    "ours, 2 threads",
    "scaling (p20-p80)",
    "dense",
    "A/A",
)


def cpus() -> int:
    """How many CPUs this process may use."""
    allowed = getattr(os, "sched_getaffinity", None)
    return len(allowed(0)) if allowed else os.cpu_count() or 1


def run(args: argparse.Namespace, passed: Gate) -> dict[str, Any]:
    """Measure, print, write; returns the record."""
    if cpus() < 2:
        print("this process may use 1 CPU: two threads cannot be faster here")
    wanted = [cell for group in groups(args) for cell in group if cell.weights == "hot"]
    entries = []
    for cell in wanted:
        entries.append(measure_cell(cell, args))
        print("  ".join(row(entries[-1])), flush=True)
    results = {"cpus": cpus(), "target": targets.load().scaling, "cells": entries}
    record = report.build("linear-scaling", results, gate=passed, threads=2, quick=args.quick)
    path = args.json or records.default_path(grid=not args.quick, threads=1, name="linear-scaling")
    print("\n" + report.table(HEADER, [row(entry) for entry in entries]))
    below = [entry for entry in entries if not entry["holds"]]
    for entry in below:
        print(f"below {results['target']}: {entry['shape']} {entry['pattern']} {entry['tokens']}")
    print(f"\n{report.write(record, path)}")
    return record


def measure_cell(cell: Cell, args: argparse.Namespace) -> dict[str, Any]:
    """Check, then time ours and dense with one and with two threads."""
    generator = torch.Generator().manual_seed(0)
    weight = torch.randn(cell.shape, generator=generator) / cell.shape[1] ** 0.5
    x = torch.randn(cell.tokens, cell.shape[1], generator=generator)
    pattern, density = split_pattern(cell.pattern)
    mask = select(weight, pattern, density)
    stored = stored_of(cell.pattern)
    ours, kept = our_stack(stored, pattern, mask, weight * mask, x, 1)
    check(ours.rows(), kept, x, stored.error)
    one, two = (lambda: torch.set_num_threads(1)), (lambda: torch.set_num_threads(2))
    contenders = measure.add_control(
        {
            "dense, 1 thread": lambda: F.linear(x, weight),
            "dense, 2 threads": lambda: F.linear(x, weight),
            "ours, 1 thread": ours.run,
            "ours, 2 threads": ours.run,
        },
        "ours, 1 thread",
    )
    before = {name: two if name.endswith("2 threads") else one for name in contenders}
    with measure.threads(2), torch.inference_mode():
        samples = measure.interleave(
            contenders, rounds=args.rounds, max_seconds=args.seconds, before=before
        )
    return describe(cell, samples)


def describe(cell: Cell, samples: measure.Measurement) -> dict[str, Any]:
    """One cell as plain numbers."""
    found = samples.ratio("ours, 1 thread", "ours, 2 threads")
    return {
        "shape": "x".join(map(str, cell.shape)),
        "pattern": cell.pattern,
        "tokens": cell.tokens,
        "seconds": {name: samples.timing(name).to_dict() for name in samples.samples},
        "ours": found.to_dict(),
        "dense": samples.ratio("dense, 1 thread", "dense, 2 threads").to_dict(),
        "control": samples.control("ours, 1 thread").to_dict(),
        "holds": found.median >= targets.load().scaling,
    }


def row(entry: dict[str, Any]) -> list[str]:
    """The cells of one table row."""
    seconds, ours, control = entry["seconds"], entry["ours"], entry["control"]
    return [
        entry["shape"],
        entry["pattern"],
        str(entry["tokens"]),
        report.duration(seconds["ours, 1 thread"]["median"]),
        report.duration(seconds["ours, 2 threads"]["median"]),
        f"{ours['median']:.2f} ({ours['p20']:.2f}-{ours['p80']:.2f})",
        f"{entry['dense']['median']:.2f}",
        f"{control['p20']:.2f}-{control['p80']:.2f}",
    ]
