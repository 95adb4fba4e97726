"""Sparse convolutions against dense ones of oneDNN, with the batch norm folded in and the ReLU behind.

One sample is one call of one layer in eval mode. Dense is ``F.relu(conv(x), inplace=True)`` of an ``nn.Conv2d`` whose
batch norm is folded, in both memory orders, each with an input and a weight of that order; ours is ``SparseConv2d``
with the same weight pruned, bias and ReLU fused, on both inputs. Speed-ups are over the faster of the two dense ones.
As a peer, dense *frozen*: oneDNN with the weight laid out once and the ReLU fused, which is what ``torch.compile`` runs
with freezing; the speed-up over the faster of its two orders stands beside. Before a layer is timed its output is held
against the dense convolution with the masked weight, in float64.
"""

from __future__ import annotations

import argparse
import copy
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from bench import gate, options, report
from evoprune_kernels import measure
from evoprune_kernels.nn import SparseConv2d

TESTS = ["tests/ops/test_conv2d.py", "tests/nn/test_sparse_conv.py"]
#: name -> (pattern, share of zeros, None where the pattern says it)
SPARSE: dict[str, tuple[str, float | None]] = {
    "2:4": ("2:4", None),
    "2:4v16": ("2:4v16", None),
    "block:16x16@75": ("block:16x16", 0.75),
    "block:16x16@90": ("block:16x16", 0.9),
}
ORDERS = {"contiguous": torch.contiguous_format, "channels last": torch.channels_last}
#: largest error against float64, over the largest true output: fp32 sums in another order
MOST_ERROR = 1e-5


@dataclass(frozen=True)
class Problem:
    """A convolution with padding k // 2 and its input [batch, c, size, size]."""

    net: str
    c: int
    n: int
    size: int
    k: int
    batch: int
    stride: int = 1

    @property
    def name(self) -> str:
        """``ResNet-18 3x3 64->64, 1x56x56``."""
        stride = f"/{self.stride}" if self.stride > 1 else ""
        shape = f"{self.batch}x{self.size}x{self.size}"
        return f"{self.net} {self.k}x{self.k} {self.c}->{self.n}{stride}, {shape}"

    def conv(self) -> nn.Conv2d:
        """The dense layer, as it is after folding: with a bias."""
        return nn.Conv2d(self.c, self.n, self.k, self.stride, self.k // 2).eval()


FULL = tuple(
    Problem(*layer, batch=batch)  # type: ignore[misc]
    for batch in (1, 8)
    for layer in (
        ("ResNet-50", 64, 256, 56, 1),
        ("ResNet-18", 64, 64, 56, 3),
        ("ResNet-18", 128, 128, 28, 3),
        ("ResNet-18", 256, 256, 14, 3),
        ("ResNet-18", 512, 512, 7, 3),
        ("ResNet-50", 1024, 256, 14, 1),
    )
)
QUICK = (Problem("small", 16, 32, 8, 3, 1), Problem("small", 16, 32, 8, 1, 2))


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The options of ``python -m bench conv``."""
    options.add_options(parser, "conv", rounds=15, seconds=30.0, one="layer")


def run(args: argparse.Namespace) -> dict[str, Any]:
    """Check, measure, print, write; returns the record."""
    passed = gate.check(TESTS, skip=args.no_gate)
    problems, rounds = (QUICK, 3) if args.quick else (FULL, args.rounds)
    with measure.threads(args.threads), torch.inference_mode():
        rows = [measure_layer(problem, rounds, args.seconds) for problem in problems]
    record = report.build(
        "conv", {"layers": rows}, gate=passed, threads=args.threads, quick=args.quick
    )
    print(report.table(HEADER, table_rows(record["results"])))
    print(f"wrote {report.write(record, args.out)}")
    return record


def measure_layer(problem: Problem, rounds: int, seconds: float) -> dict[str, Any]:
    """The contenders of one layer, checked, then in turns."""
    torch.manual_seed(0)
    x = torch.randn(problem.batch, problem.c, problem.size, problem.size)
    conv = problem.conv()
    layers = {name: sparse_of(conv, *how) for name, how in SPARSE.items()}
    contenders: dict[str, Callable[[], object]] = {}
    for order, memory_format in ORDERS.items():
        image = x.contiguous(memory_format=memory_format)
        plain = copy.deepcopy(conv).to(memory_format=memory_format)
        contenders[dense(order)] = dense_call(plain, image)
        contenders[frozen(order)] = frozen_call(conv, image)
        for name, layer in layers.items():
            check(layer, image)
            contenders[ours(name, order)] = sparse_call(layer, image)
    for order in ORDERS:
        contenders = measure.add_control(contenders, dense(order))
    samples = measure.interleave(
        contenders, rounds=rounds, min_sample=0.005, max_seconds=seconds, min_rounds=3
    )
    best, peer = (
        min(map(kind, ORDERS), key=lambda n: samples.timing(n).median) for kind in (dense, frozen)
    )
    return {
        "layer": problem.name,
        "input": list(x.shape),
        "weight": list(conv.weight.shape),
        "best_dense": best,
        "best_frozen": peer,
        "seconds": {name: samples.timing(name).to_dict() for name in contenders},
        "control": samples.control(best).to_dict(),
        "frozen_speedup": samples.ratio(best, peer).to_dict(),
        "ours": [
            {
                "pattern": name,
                "order": order,
                "kernel": layer.kernel,
                "stored_percent": layer.stored_percent,
                "speedup": samples.ratio(best, ours(name, order)).to_dict(),
                "over_frozen": samples.ratio(peer, ours(name, order)).to_dict(),
            }
            for name, layer in layers.items()
            for order in ORDERS
        ],
    }


def dense(order: str) -> str:
    """The contender's name."""
    return f"dense, {order}"


def frozen(order: str) -> str:
    """The contender's name."""
    return f"frozen, {order}"


def ours(pattern: str, order: str) -> str:
    """The contender's name."""
    return f"{pattern}, {order}"


def sparse_of(conv: nn.Conv2d, pattern: str, sparsity: float | None) -> SparseConv2d:
    """Our layer around a pruned copy of ``conv``."""
    copied = copy.deepcopy(conv)
    return SparseConv2d.from_conv(copied, pattern, sparsity=sparsity, activation="relu").eval()


def dense_call(conv: nn.Conv2d, x: Tensor) -> Callable[[], Tensor]:
    """The convolution and its ReLU, in place."""
    return lambda: F.relu(conv(x), inplace=True)


def frozen_call(conv: nn.Conv2d, x: Tensor) -> Callable[[], Tensor]:
    """oneDNN with the weight laid out for this input and the ReLU fused; checked.

    Raises:
        GateError: if it is further off than ``MOST_ERROR`` from the eager layer.
    """
    sizes = [list(conv.padding), list(conv.stride), list(conv.dilation)]  # type: ignore[arg-type]
    weight = torch._C._nn.mkldnn_reorder_conv2d_weight(
        conv.weight.detach().to_mkldnn(), *sizes, conv.groups, list(x.shape)
    )
    op = torch.ops.mkldnn._convolution_pointwise

    def call() -> Tensor:
        return op(x, weight, conv.bias, *sizes, conv.groups, "relu", [], "")

    true = F.relu(conv(x))
    gate.hold(f"frozen {conv}", call(), true, MOST_ERROR)
    return call


def sparse_call(layer: SparseConv2d, x: Tensor) -> Callable[[], Tensor]:
    """One call of ours."""
    return lambda: layer(x)


def check(layer: SparseConv2d, x: Tensor) -> None:
    """Hold ``layer`` against torch's convolution with its masked weight in float64.

    Raises:
        GateError: if it is dense, or further off than ``MOST_ERROR`` of the largest true output.
    """
    if layer.kernel is None:
        raise gate.GateError(f"{layer} is dense: {layer.dense_reason}")
    bias = None if layer.bias is None else layer.bias.double()
    true = F.relu(layer._conv_forward(x.double(), layer.weight.double(), bias))
    gate.hold(str(layer), layer(x), true, MOST_ERROR)


HEADER = (
    "layer",
    *(dense(order) for order in ORDERS),
    "frozen",
    *(f"{name}: contiguous, channels last (best over frozen)" for name in SPARSE),
    "A/A",
)


def table_rows(results: dict[str, Any]) -> list[list[str]]:
    """One row a layer: the times of both dense orders, then speed-ups over the faster one."""
    rows = []
    for row in results["layers"]:
        cells = [row["layer"]]
        cells += [report.duration(row["seconds"][dense(order)]["median"]) for order in ORDERS]
        cells.append(report.ratio(row["frozen_speedup"]))
        for name in SPARSE:
            both = [o for o in row["ours"] if o["pattern"] == name]
            over = max(o["over_frozen"]["median"] for o in both)
            cells.append(", ".join(report.ratio(o["speedup"]) for o in both) + f" ({over:.2f}x)")
        rows.append([*cells, report.ratio(row["control"])])
    return rows
