"""A perceptron on digits (scikit-learn's 1797 scans of 8x8): dense against 90 % of its 16x16 blocks removed.

The same data, seeds and steps for both; the pruned one is trained by ``ek.optim.AdamW(prune=...)``. Accuracy on a
held-out quarter, speed on one thread.
"""

from __future__ import annotations

import argparse
import copy
import statistics
import sys
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

import evoprune_kernels as ek
from bench import report
from bench.gate import Gate, GateError
from evoprune_kernels import measure
from tests.tolerance import FLOOR, max_error

BATCH = 64


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The options of ``python -m bench.digits``."""
    parser.add_argument("--pattern", default="block:16x16")
    parser.add_argument("--sparsity", type=float, default=0.9)
    parser.add_argument("--width", type=int, default=512)
    parser.add_argument("--steps", type=int, default=400)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument(
        "--quick", action="store_true", help="few steps; a test of the program, not a figure"
    )
    parser.add_argument("--json", help="default: bench/results/digits.json")


def load_data() -> tuple[Tensor, Tensor]:
    """Images [1797, 64] in 0-1 and labels [1797], in an order that is shuffled once and always the same."""
    from sklearn.datasets import load_digits

    data = load_digits()
    order = torch.randperm(len(data.target), generator=torch.Generator().manual_seed(0))
    images = torch.tensor(data.data, dtype=torch.float32) / 16.0
    return images[order], torch.tensor(data.target)[order]


def make_model(width: int) -> nn.Sequential:
    """64 -> width -> width -> width -> 10."""
    return nn.Sequential(
        nn.Linear(64, width),
        nn.ReLU(),
        nn.Linear(width, width),
        nn.ReLU(),
        nn.Linear(width, width),
        nn.ReLU(),
        nn.Linear(width, 10),
    )


def train(
    prune: ek.PruneConfig | None, seed: int, steps: int, width: int, data: tuple[Tensor, Tensor]
) -> nn.Module:
    """Train one model; ``prune=None`` is the dense one. The last layer (10 rows) stays dense."""
    torch.manual_seed(seed)
    model = make_model(width)
    groups = ek.optim.prunable_groups(model, prune, exclude=("6",)) if prune else model.parameters()
    optimizer = ek.optim.AdamW(groups, lr=1e-3, weight_decay=0.01)
    images, labels = data
    for step in range(steps):
        for group in optimizer.param_groups:
            group["lr"] = 1e-3 * (1.0 - 0.9 * step / steps)
        rows = torch.randint(len(images), (BATCH,))
        loss = F.cross_entropy(model(images[rows]), labels[rows])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return model.eval()


@torch.no_grad()
def accuracy(model: nn.Module, images: Tensor, labels: Tensor) -> float:
    """Share of images that are named rightly."""
    return (model(images).argmax(1) == labels).double().mean().item()


def time_pair(dense: nn.Module, sparse: nn.Module, images: Tensor, rounds: int) -> dict[str, Any]:
    """Images per second of both at 1 and ``BATCH`` images, one thread."""
    found = {}
    for count in (1, BATCH):
        part = images[:count]
        calls = {"dense": lambda p=part: dense(p), "sparse": lambda p=part: sparse(p)}
        with measure.threads(1), torch.inference_mode():
            samples = measure.interleave(
                measure.add_control(calls, "dense"), rounds=rounds, min_sample=2e-3
            )
        found[str(count)] = {
            "dense_per_second": count / samples.timing("dense").median,
            "sparse_per_second": count / samples.timing("sparse").median,
            "speedup": samples.ratio("dense", "sparse").to_dict(),
            "control": samples.control("dense").to_dict(),
        }
    return found


def run(args: argparse.Namespace) -> dict[str, Any]:
    """Train both models per seed, compare, time the last pair; returns the record that is written."""
    steps, seeds = (12, 1) if args.quick else (args.steps, args.seeds)
    images, labels = load_data()
    cut = len(images) * 3 // 4
    training, test = (images[:cut], labels[:cut]), (images[cut:], labels[cut:])
    prune = ek.PruneConfig(
        args.pattern,
        sparsity=args.sparsity,
        start=steps // 10,
        end=steps // 2,
        every=max(1, steps // 20),
    )
    print(
        f"digits: {cut} training and {len(images) - cut} test images, {steps} steps, {seeds} seeds"
    )
    scores: dict[str, list[float]] = {"dense": [], "pruned": []}
    for seed in range(seeds):
        dense = train(None, seed, steps, args.width, training)
        pruned = train(prune, seed, steps, args.width, training)
        scores["dense"].append(accuracy(dense, *test))
        scores["pruned"].append(accuracy(pruned, *test))
    sparse = copy.deepcopy(pruned)
    with measure.threads(1):
        inference = ek.optimize_for_inference(sparse, (test[0][:BATCH],), min_speedup=1.05)
    errors = check(pruned, sparse, test[0])
    speed = time_pair(pruned, sparse, test[0], 3 if args.quick else 25)
    print(inference)
    rows = [
        [name, f"{statistics.mean(s):.2%}", " ".join(f"{a:.2%}" for a in s)]
        for name, s in scores.items()
    ]
    print(report.table(("model", "accuracy", "per seed"), rows))
    for count, entry in speed.items():
        ratio = entry["speedup"]
        print(
            f"{count} images: {ratio['median']:.2f}x ({ratio['p20']:.2f}-{ratio['p80']:.2f}) faster on one thread"
        )
    results = {
        "data": "scikit-learn load_digits: 1797 images of 8x8, a quarter held out",
        "pattern": args.pattern,
        "sparsity": args.sparsity,
        "width": args.width,
        "steps": steps,
        "accuracy": scores,
        "layers": inference.to_dict(),
        "logits": errors,
        "speed": speed,
    }
    passed = Gate("passed", (), "the logits of this run, by the tolerance law", 0.0)
    record = report.build("digits", results, gate=passed, threads=1, quick=args.quick)
    print(report.write(record, args.json))
    return record


def check(masked: nn.Module, sparse: nn.Module, images: Tensor) -> dict[str, float]:
    """The optimised model against the masked one in fp64, by the tolerance law."""
    with torch.inference_mode():
        truth = copy.deepcopy(masked).double()(images.double())
        dense_error, sparse_error = (max_error(m(images), truth) for m in (masked, sparse))
    allowed = 2 * dense_error + FLOOR[torch.float32] * truth.abs().max().item()
    if not sparse_error <= allowed:
        raise GateError(f"logits differ from fp64 by {sparse_error:.2e}, allowed are {allowed:.2e}")
    return {"dense_error": dense_error, "sparse_error": sparse_error, "allowed": allowed}


def main(argv: Sequence[str] | None = None) -> int:
    """``python -m bench.digits``."""
    parser = argparse.ArgumentParser(prog="python -m bench.digits", description=__doc__)
    add_arguments(parser)
    try:
        run(parser.parse_args(argv))
    except GateError as error:
        print(f"refused: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
