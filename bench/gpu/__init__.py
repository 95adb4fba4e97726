"""``python -m bench gpu``: the correctness suite on the GPU at hand, then every kernel against its rivals; one JSON.

Nothing is timed before tests/cuda has passed on the device itself. Contenders run inside CUDA graphs (or, all of a
problem's alike, as plain calls where one cannot be captured), over a stack of layers or inputs that exceeds the L2
cache, in interleaved rounds with an A/A control. Without a GPU the command says
so and ends with an error; ``--device cpu --quick --no-gate`` runs the program on references, as a test of itself.
"""

from __future__ import annotations

import argparse
from typing import Any

import torch

from bench import gate, report
from bench.gate import GateError
from bench.gpu import block_backward, compare, gates, linear, packing, selection, step, timing
from evoprune_kernels import _ext, measure

TESTS = ["tests/cuda"]
#: sections whose problems are ops with their contenders
OPS = {
    "selection": selection.problems,
    "packing": packing.problems,
    "gates": gates.problems,
    "block_backward": block_backward.problems,
}
SECTIONS = ("step", "linear", *OPS)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The options of ``python -m bench gpu``."""
    parser.add_argument("--device", choices=("cuda", "cpu"), default="cuda")
    parser.add_argument("--only", nargs="+", choices=SECTIONS, default=SECTIONS)
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--seconds", type=float, default=3.0, help="at most this long a problem")
    parser.add_argument("--quick", action="store_true", help="few problems; a test of the program")
    parser.add_argument(
        "--json", "--out", dest="out", help="default: bench/results/gpu-<name>.json"
    )
    gate.add_argument(parser)


def why_not(device: str) -> str | None:
    """Why nothing can be measured here, or None."""
    if device == "cpu":
        return None
    if not torch.cuda.is_available():
        return f"torch {torch.__version__} finds no GPU"
    return f"_cuda.so: {_ext.reasons['_cuda']}" if "_cuda" in _ext.reasons else None


def run(args: argparse.Namespace) -> dict[str, Any]:
    """Check, measure, print, write; returns the record."""
    if reason := why_not(args.device):
        raise GateError(f"nothing is measured: {reason}")
    passed = gate.check(TESTS, skip=args.no_gate, environment={"EVOPRUNE_GPU": "1"})
    rounds = 5 if args.quick else args.rounds
    before = timing.facts(args.device)
    results: dict[str, Any] = {"gpu": before}
    with measure.threads(1), torch.no_grad():
        if "step" in args.only:
            layers = 1 if args.quick else 7
            results["step"] = step.measure_step(layers, args.device, rounds, args.seconds)
            show_step(results["step"])
        if "linear" in args.only:
            results["linear"] = []
            for problem in linear.problems(args.quick):
                found = linear.cell(problem, args.device, rounds, args.seconds)
                results["linear"].append(found)
                print("  ".join(linear.row(found)), flush=True)
        for section, problems in OPS.items():
            if section not in args.only:
                continue
            results[section] = []
            for problem in problems(args.device, args.quick):
                found = compare.cell(problem, args.device, rounds, args.seconds)
                results[section].append(found)
                print("  ".join(compare.row(found)), flush=True)
    if args.device == "cuda":
        results["clocks_after"] = timing.clocks()
    name = "gpu-" + str(before["gpu"]).split(" (")[0].lower().replace(" ", "-")
    quick = args.quick or args.device == "cpu"
    record = report.build(name, results, gate=passed, threads=1, quick=quick)
    print(f"wrote {report.write(record, args.out)}")
    return record


def show_step(result: dict[str, Any]) -> None:
    """The table of the optimizer step."""
    rows = [
        [
            name,
            f"{1e3 * entry['time']['median']:.3f}",
            f"{entry['over_torch']['median']:.2f}",
            entry["bytes_a_parameter"],
            f"{entry['bytes_a_second'] / 1e9:.0f}",
        ]
        for name, entry in result["contenders"].items()
    ]
    header = ["step", "ms", "time over torch", "bytes a parameter", "GB/s"]
    print(report.table(header, rows) + f"\n{result['parameters'] / 1e6:.1f} M parameters\n")
