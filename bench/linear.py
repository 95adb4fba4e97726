"""Sparse linear layers against the dense one and torch's own sparse formats, per shape, pattern and tokens.

``y = x W^T``; contenders: dense ``F.linear`` (twice: the A/A control), our packed weight, torch CSR, torch BSR. The
peers get their activations feature-major and keep their result so, with no transpose counted, in their favour.

    cold   a stack of equal layers, every one with its own weights in memory, together far beyond the last-level cache:
           what a model does at few tokens. One sample is one pass over the stack; figures are per layer.
    hot    one layer again and again: for many tokens, where arithmetic decides. At few tokens it is a different
           question (the weight sits in a cache), so it is asked only with --hot and has its own rows.

Every contender's result is held against fp64 by the tolerance law before anything is timed.
"""

from __future__ import annotations

import argparse
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from bench import gate, report
from bench.peers import Peer, torch_bsr, torch_csr
from evoprune_kernels import formats, measure, ops
from evoprune_kernels.formats import BitmaskWeight, BlockWeight, NMWeight, PackedWeight
from tests.tolerance import assert_accurate

SHAPES = ("3072x768", "768x3072", "768x768", "4096x4096")
TOKENS = (1, 16, 128, 512)
PATTERNS = (
    "2:4",
    "2:4v16",
    "block:16x16@50",
    "block:16x16@75",
    "block:16x16@90",
    "unstructured@50",
    "unstructured@90",
)
FEW_TOKENS = 16
TESTS = {
    NMWeight: "tests/ops/test_nm_linear.py",
    BlockWeight: "tests/ops/test_block_linear.py",
    BitmaskWeight: "tests/ops/test_bitmask_linear.py",
}


@dataclass(frozen=True)
class Cell:
    """One row of the report: ``weights`` is ``cold`` or ``hot``, ``layers`` how many were streamed in a sample."""

    shape: tuple[int, int]
    pattern: str
    tokens: int
    weights: str
    layers: int


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The options of ``python -m bench linear``."""
    parser.add_argument("--shapes", nargs="+", default=list(SHAPES), metavar="OUTxIN")
    parser.add_argument("--tokens", nargs="+", type=int, default=list(TOKENS))
    parser.add_argument(
        "--patterns", nargs="+", default=list(PATTERNS), metavar="PATTERN[@SPARSITY]"
    )
    parser.add_argument(
        "--dtype", choices=("float32", "bfloat16"), default="float32", help="of ours"
    )
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--seconds", type=float, default=4.0, help="at most this long a cell")
    parser.add_argument("--cold-mb", type=int, default=512, help="dense bytes of a cold stack")
    parser.add_argument(
        "--hot", action="store_true", help="also few tokens with one layer in a cache"
    )
    parser.add_argument("--no-peers", action="store_true", help="leave out torch CSR and BSR")
    parser.add_argument(
        "--quick", action="store_true", help="one small cell; a test of the program"
    )
    parser.add_argument("--json", help="default: bench/results/linear.json")
    gate.add_argument(parser)


def split_pattern(text: str) -> tuple[formats.Pattern, float]:
    """``"block:16x16@75"`` -> (pattern, density 0.25); an n:m pattern has its density in its name."""
    name, _, percent = text.partition("@")
    pattern = formats.parse_pattern(name)
    if isinstance(pattern, formats.NM):
        if percent:
            raise ValueError(f"{text!r}: {name} has its own sparsity, expected no '@'")
        return pattern, pattern.n / pattern.m
    if not percent or not 0.0 <= float(percent) < 100.0:
        raise ValueError(f"{text!r}: expected PATTERN@PERCENT with a sparsity from 0 to below 100")
    return pattern, 1.0 - float(percent) / 100.0


def select(weight: Tensor, pattern: formats.Pattern, density: float) -> Tensor:
    """The mask of ``pattern`` by magnitude."""
    scores = weight.abs()
    if isinstance(pattern, formats.NM):
        return ops.select_nm(scores, pattern.n, pattern.m, shared=pattern.shared)
    if isinstance(pattern, formats.Block):
        return ops.select_block(scores, pattern.rows, pattern.columns, density)
    return ops.select_topk(scores, density)


def kernel(packed: PackedWeight, tensors: tuple[Tensor, ...]) -> Callable[[Tensor], Tensor]:
    """``x -> x W^T`` by the op of ``packed`` with its prepared ``tensors``."""
    evoprune = torch.ops.evoprune
    if isinstance(packed, NMWeight):
        op = evoprune.nm_linear.default
        numbers = (*packed.shape, *packed.pattern.arguments())
    elif isinstance(packed, BlockWeight):
        op, numbers = evoprune.block_linear.default, (*packed.shape, *packed.values.shape[1:])
    else:
        op, numbers = evoprune.bitmask_linear.default, tuple(packed.shape)
    return lambda x: op(x, *tensors, None, *numbers, "none", "cpu")


def measure_cell(cell: Cell, args: argparse.Namespace) -> dict[str, Any]:
    """Check, then time the contenders of one cell."""
    pattern, density = split_pattern(cell.pattern)
    dtype = getattr(torch, args.dtype)
    generator = torch.Generator().manual_seed(0)
    weight = torch.randn(cell.shape, generator=generator) / cell.shape[1] ** 0.5
    mask = select(weight, pattern, density)
    masked = weight * mask
    x = torch.randn(cell.tokens, cell.shape[1], generator=generator)
    packed = formats.pack(masked.to(dtype), pattern, mask=mask)
    tensors = ops.prepare(packed)
    truth = x.to(dtype).double() @ masked.to(dtype).double().T
    assert_accurate(
        kernel(packed, tensors)(x.to(dtype)), truth, F.linear(x.to(dtype), masked.to(dtype))
    )
    peers = [] if args.no_peers or dtype != torch.float32 else find_peers(masked, x, pattern)
    for peer in peers:
        assert_accurate(peer.rows(), truth, F.linear(x, masked))
    x_ours = x.to(dtype)
    contenders = {
        "dense": passes(
            [torch.empty_like(masked).copy_(masked) for _ in range(cell.layers)],
            lambda w: F.linear(x, w),
        ),
        "ours": passes(
            [kernel(packed, tuple(t.clone() for t in tensors)) for _ in range(cell.layers)],
            lambda f: f(x_ours),
        ),
    }
    for peer in peers:
        contenders[peer.name] = passes(
            [peer.clone() for _ in range(cell.layers)], lambda p: p.call()
        )
    contenders = measure.add_control(contenders, "dense")
    with measure.threads(args.threads), torch.inference_mode():
        samples = measure.interleave(
            contenders,
            rounds=args.rounds,
            warmup=1,
            max_seconds=args.seconds,
            min_sample=0.0 if args.quick else 2e-3,
        )
    return describe(cell, contenders, samples, mask)


def passes(layers: list[Any], call: Callable[[Any], object]) -> Callable[[], None]:
    """A callable that goes over all ``layers`` once."""

    def run() -> None:
        for layer in layers:
            call(layer)

    return run


def find_peers(masked: Tensor, x: Tensor, pattern: formats.Pattern) -> list[Peer]:
    """torch's sparse formats that can hold this weight."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch calls its sparse formats a prototype
        peers = [torch_csr(masked, x)]
        if isinstance(pattern, formats.Block):
            peers.append(torch_bsr(masked, x, pattern.rows, pattern.columns))
    return [peer for peer in peers if peer is not None]


def describe(
    cell: Cell, contenders: dict[str, Any], samples: measure.Measurement, mask: Tensor
) -> dict[str, Any]:
    """One cell as plain numbers; times are seconds per layer, ratios are dense over the contender."""
    entry: dict[str, Any] = {
        "shape": "x".join(map(str, cell.shape)),
        "pattern": cell.pattern,
        "density": mask.double().mean().item(),
        "tokens": cell.tokens,
        "weights": cell.weights,
        "layers": cell.layers,
        "contenders": {},
    }
    for name in contenders:
        timing = samples.timing(name).to_dict()
        seconds = {k: v / cell.layers for k, v in timing.items() if k != "rounds"}
        entry["contenders"][name] = {
            "seconds": seconds,
            "rounds": timing["rounds"],
            "speedup": samples.ratio("dense", name).to_dict(),
        }
    entry["noise"] = samples.noise("dense")
    return entry


def row(entry: dict[str, Any]) -> list[str]:
    """The cells of one table row."""
    found = entry["contenders"]
    ours = found["ours"]["speedup"]
    peers = {n: c["speedup"]["median"] for n, c in found.items() if n.startswith("torch")}
    best = max(peers, key=lambda name: peers[name], default=None)
    control = found["dense (A/A)"]["speedup"]
    return [
        entry["shape"],
        entry["pattern"],
        str(entry["tokens"]),
        entry["weights"],
        report.duration(found["dense"]["seconds"]["median"]),
        report.duration(found["ours"]["seconds"]["median"]),
        f"{ours['median']:.2f} ({ours['p20']:.2f}-{ours['p80']:.2f})",
        f"{peers[best]:.2f} {best.removeprefix('torch ')}" if best else "-",
        f"{control['p20']:.2f}-{control['p80']:.2f}",
    ]


HEADER = (
    "out x in",
    "pattern",
    "tokens",
    "weights",
    "dense",
    "ours",
    "speed-up (p20-p80)",
    "best peer",
    "A/A",
)


def cells(args: argparse.Namespace) -> list[Cell]:
    """Every cell that the options ask for."""
    found = []
    for text in args.shapes:
        out, _, in_ = text.partition("x")
        shape = (int(out), int(in_))
        layers = max(2, -(-args.cold_mb * 2**20 // (4 * shape[0] * shape[1])))
        for pattern in args.patterns:
            for tokens in args.tokens:
                few = tokens <= FEW_TOKENS
                if few:
                    found.append(Cell(shape, pattern, tokens, "cold", layers))
                if not few or args.hot:
                    found.append(Cell(shape, pattern, tokens, "hot", 1))
    return found


def run(args: argparse.Namespace) -> dict[str, Any]:
    """Measure, print and write; returns the record."""
    if args.quick:
        args.shapes, args.tokens, args.patterns = ["64x48"], [1, 32], args.patterns[:1]
        args.cold_mb, args.rounds = 0, 3
    kinds = dict.fromkeys(formats.format_of(split_pattern(p)[0]) for p in args.patterns)
    passed = gate.check([TESTS[kind] for kind in kinds], skip=args.no_gate)
    entries: list[dict[str, Any]] = []
    for cell in cells(args):
        entries.append(measure_cell(cell, args))
        print("  ".join(row(entries[-1])), flush=True)
    results = {"dtype": args.dtype, "cells": entries}
    record = report.build("linear", results, gate=passed, threads=args.threads, quick=args.quick)
    print("\n" + report.table(HEADER, [row(e) for e in entries]))
    print(f"\n{report.write(record, args.json)}")
    return record
