"""A transformer stack end to end: dense, masked dense, and optimised for inference.

The weights are random and pruned by magnitude: speed does not depend on their values. The masked dense model is the
honest rival: the same zeros, the same result, torch's dense product. It also shows that zeros alone buy nothing.
"""

from __future__ import annotations

import argparse
import copy
from typing import Any

import torch
from torch import nn

import evoprune_kernels as ek
from bench import gate, report
from bench.char_gpt import CharGPT, GPTConfig
from bench.demo import check_logits
from bench.linear import split_pattern
from bench.text import SYMBOLS
from evoprune_kernels import formats, measure

TESTS = ["tests/test_inference.py", "tests/test_convert.py"]
PATTERNS = ("2:4", "block:16x16@75")
HEADER = (
    "pattern",
    "tokens",
    "dense",
    "masked dense",
    "sparse",
    "speed-up (p20-p80)",
    "A/A",
    "sparse layers",
)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The options of ``python -m bench model``."""
    parser.add_argument("--width", type=int, default=768)
    parser.add_argument("--layers", type=int, default=6)
    parser.add_argument(
        "--tokens", nargs="+", type=int, default=[1, 16, 128], help="tokens a forward pass"
    )
    parser.add_argument(
        "--patterns", nargs="+", default=list(PATTERNS), metavar="PATTERN[@SPARSITY]"
    )
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--quick", action="store_true", help="a tiny stack; a test of the program")
    parser.add_argument("--json", help="default: bench/results/model.json")
    gate.add_argument(parser)


def measure_pattern(text: str, dense: CharGPT, args: argparse.Namespace) -> list[dict[str, Any]]:
    """One entry per number of tokens; the layers are chosen anew for each."""
    pattern, density = split_pattern(text)
    sparsity = None if isinstance(pattern, formats.NM) else 1.0 - density
    masked = copy.deepcopy(dense)
    ek.convert(masked, pattern, filter="blocks.*", sparsity=sparsity)
    ek.export(masked)
    entries = []
    for count in args.tokens:
        tokens = torch.randint(len(SYMBOLS), (1, count), generator=torch.Generator().manual_seed(0))
        sparse = copy.deepcopy(masked)
        with measure.threads(args.threads):
            inference = ek.optimize_for_inference(sparse, (tokens,), min_speedup=1.05)
            logits = check_logits(masked, sparse, tokens)
            entry = time_forward(
                {"dense": dense, "masked dense": masked, "sparse": sparse}, tokens, args
            )
        entries.append(
            {
                "pattern": text,
                "tokens": count,
                "logits": logits,
                "layers": inference.to_dict(),
                **entry,
            }
        )
        print("  ".join(row(entries[-1])), flush=True)
    return entries


def time_forward(
    models: dict[str, nn.Module], tokens: torch.Tensor, args: argparse.Namespace
) -> dict[str, Any]:
    """Seconds of one forward pass of each model, and ratios to the masked dense one."""
    contenders = measure.add_control(
        {name: (lambda m=model: m(tokens)) for name, model in models.items()}, "masked dense"
    )
    with torch.inference_mode():
        samples = measure.interleave(contenders, rounds=args.rounds, warmup=2)
    found = {
        name: {
            "seconds": samples.timing(name).to_dict(),
            "speedup": samples.ratio("masked dense", name).to_dict(),
        }
        for name in contenders
    }
    return {"contenders": found, "noise": samples.noise("masked dense")}


def row(entry: dict[str, Any]) -> list[str]:
    """The cells of one table row."""
    found = entry["contenders"]
    ratio, control = found["sparse"]["speedup"], found["masked dense (A/A)"]["speedup"]
    times = [
        report.duration(found[n]["seconds"]["median"]) for n in ("dense", "masked dense", "sparse")
    ]
    spread = f"{ratio['median']:.2f} ({ratio['p20']:.2f}-{ratio['p80']:.2f})"
    noise = f"{control['p20']:.2f}-{control['p80']:.2f}"
    return [
        entry["pattern"],
        str(entry["tokens"]),
        *times,
        spread,
        noise,
        sparse_layers(entry["layers"]),
    ]


def sparse_layers(layers: dict[str, Any]) -> str:
    """``18 of 25``: how many linear layers run sparse."""
    return f"{len(layers['swapped'])} of {len(layers['layers'])}"


def run(args: argparse.Namespace) -> dict[str, Any]:
    """Measure, print and write; returns the record."""
    if args.quick:
        args.width, args.layers, args.tokens, args.rounds = 64, 1, [1, 8], 3
        args.patterns = args.patterns[:1]
    passed = gate.check(TESTS, skip=args.no_gate)
    torch.manual_seed(0)
    config = GPTConfig(
        len(SYMBOLS), max(args.tokens), args.layers, args.width, max(1, args.width // 64)
    )
    dense = CharGPT(config).eval()
    size = sum(p.numel() for p in dense.parameters())
    print(f"{args.layers} blocks of width {args.width}, {size:,} parameters, {args.threads} thread")
    entries = [entry for text in args.patterns for entry in measure_pattern(text, dense, args)]
    results = {"width": args.width, "layers": args.layers, "parameters": size, "runs": entries}
    record = report.build("model", results, gate=passed, threads=args.threads, quick=args.quick)
    print("\n" + report.table(HEADER, [row(e) for e in entries]))
    print(f"\n{report.write(record, args.json)}")
    return record
