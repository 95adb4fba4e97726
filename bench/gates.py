"""The CPU kernels of channel gating against what people compose of torch, on the layers of a ResNet.

One sample is one call. What is composed, with gates g [C] as a view [1, C, 1, 1]::

    gate        y = x * g                                            and its autograd for x and g
    choose      grad.abs().sum((0, 2, 3)).topk(k)                    the channels that ssProp keeps
    gather      x.index_select(1, index), and scatter index_add_ into zeros; of channels_last along the last dimension
    gate_norm   F.relu(F.batch_norm(x * g, .., training=True))       and its autograd for x, g, weight, bias

Backward samples run ``torch.autograd.grad`` of a finished forward, on both sides. Every gate is open unless ``--open``
says otherwise: a closed plane is read by neither kernel, so that closed gates only help. Before they are timed the
results of both are compared.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from bench import gate, options, report
from evoprune_kernels import measure, ops
from evoprune_kernels.ops.gather_channels.reference import (
    gather_channels_reference,
    scatter_channels_reference,
)

TESTS = [
    "tests/ops/test_channel_gate.py",
    "tests/ops/test_topk_channels.py",
    "tests/ops/test_gate_norm.py",
    "tests/ops/test_gather_channels.py",
]
COMPOSED, OURS = "torch", "ours"
#: largest difference from the composition, over its largest value: fp32 sums in another order
MOST_ERROR = 1e-4
#: share of the channels that "choose", "gather" and "scatter" keep
KEPT = 0.2
LAYOUTS = {"contiguous": torch.contiguous_format, "channels_last": torch.channels_last}

Call = Callable[[], Any]


@dataclass(frozen=True)
class Shape:
    """The output of one convolution."""

    name: str
    batch: int
    channels: int
    size: int


FULL = (
    Shape("ResNet-20", 128, 16, 32),
    Shape("ResNet-20", 128, 32, 16),
    Shape("ResNet-20", 128, 64, 8),
    Shape("ResNet-18", 8, 64, 56),
    Shape("ResNet-18", 8, 128, 28),
    Shape("ResNet-18", 8, 256, 14),
    Shape("ResNet-18", 8, 512, 7),
)
QUICK = (Shape("ResNet-20", 2, 16, 8), Shape("ResNet-18", 2, 40, 7))


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The options of ``python -m bench gates``."""
    options.add_options(parser, "gates", rounds=25, seconds=20.0, one="row")
    parser.add_argument("--open", type=float, default=1.0, help="share of the gates that are open")


def run(args: argparse.Namespace) -> dict[str, Any]:
    """Check, measure, print, write; returns the record."""
    passed = gate.check(TESTS, skip=args.no_gate)
    shapes, rounds = (QUICK, 3) if args.quick else (FULL, args.rounds)
    with measure.threads(args.threads):
        rows = [
            measure_op(shape, layout, name, rounds, args)
            for shape in shapes
            for layout in LAYOUTS
            for name in OPS
        ]
    results = {"open": args.open, "ops": rows}
    record = report.build("gates", results, gate=passed, threads=args.threads, quick=args.quick)
    print(report.table(HEADER, table_rows(record["results"])))
    print(f"wrote {report.write(record, args.out)}")
    return record


def measure_op(
    shape: Shape, layout: str, name: str, rounds: int, args: argparse.Namespace
) -> dict[str, Any]:
    """Both sides of one op on one shape, compared, then in turns."""
    problem = Problem(shape, layout, args.open)
    calls = OPS[name](problem)
    compare(name, calls)
    contenders = measure.add_control(calls, COMPOSED)
    samples = measure.interleave(
        contenders, rounds=rounds, min_sample=0.005, max_seconds=args.seconds, min_rounds=3
    )
    return {
        "layer": f"{shape.name} {shape.batch}x{shape.channels}x{shape.size}x{shape.size}",
        "layout": layout,
        "op": name,
        "seconds": {key: samples.timing(key).to_dict() for key in contenders},
        "control": samples.control(COMPOSED).to_dict(),
        "speedup": samples.ratio(COMPOSED, OURS).to_dict(),
    }


class Problem:
    """The tensors of one shape, as leaves of autograd."""

    def __init__(self, shape: Shape, layout: str, share: float) -> None:
        generator = torch.Generator().manual_seed(0)

        def random(*sizes: int) -> Tensor:
            return torch.randn(sizes, generator=generator)

        sizes = shape.batch, shape.channels, shape.size, shape.size
        form = LAYOUTS[layout]
        self.x = random(*sizes).contiguous(memory_format=form).requires_grad_()
        self.grad = random(*sizes).contiguous(memory_format=form)
        is_open = torch.rand(shape.channels, generator=generator) < share
        self.gates = is_open.float().requires_grad_()
        self.weight = random(shape.channels).requires_grad_()
        self.bias = random(shape.channels).requires_grad_()
        self.statistics = torch.zeros(shape.channels), torch.ones(shape.channels)

    @property
    def spread(self) -> Tensor:
        """The gates as a view that multiplies x."""
        return self.gates.view(1, -1, 1, 1)

    def gated(self) -> tuple[Call, Call]:
        """Composed and ours."""
        return lambda: self.x * self.spread, lambda: ops.channel_gate(self.x, self.gates)

    def normed(self) -> tuple[Call, Call]:
        """Composed and ours; each updates running statistics of its own."""
        theirs, mine = ([t.clone() for t in self.statistics] for _ in range(2))
        affine = self.weight, self.bias
        return (
            lambda: F.relu(F.batch_norm(self.x * self.spread, *theirs, *affine, training=True)),
            lambda: ops.gate_norm(self.x, self.gates, *affine, *mine, training=True, relu=True),
        )

    def backward(self, y: Tensor, *leaves: Tensor) -> Call:
        """The backward of a finished forward, as often as wanted."""
        return lambda: torch.autograd.grad(y, leaves, self.grad, retain_graph=True)


def _named(composed: Call, ours: Call) -> dict[str, Call]:
    return {COMPOSED: composed, OURS: ours}


def _without_graph(call: Call) -> Call:
    def run() -> Any:
        with torch.no_grad():
            return call()

    return run


def gate_forward(p: Problem) -> dict[str, Call]:
    """The product."""
    return _named(*map(_without_graph, p.gated()))


def gate_backward(p: Problem) -> dict[str, Call]:
    """Gradients of x and gates."""
    return _named(*(p.backward(call(), p.x, p.gates) for call in p.gated()))


def choose(p: Problem) -> dict[str, Call]:
    """The channels with the largest sums of sizes; compared as sets of channels."""
    kept = max(1, round(KEPT * p.gates.numel()))
    return _named(
        lambda: p.grad.abs().sum((0, 2, 3)).topk(kept, sorted=False).indices,
        lambda: ops.topk_abs_channels(p.grad, kept),
    )


def gather(p: Problem) -> dict[str, Call]:
    """A share of the channels alone; composed is the reference, torch's fastest way in this memory format."""
    index = _some(p)
    return _named(
        lambda: gather_channels_reference(p.grad, index), lambda: ops.gather_channels(p.grad, index)
    )


def scatter(p: Problem) -> dict[str, Call]:
    """The same channels back among zeros."""
    index, channels = _some(p), p.grad.shape[1]
    few = ops.gather_channels(p.grad, index)
    return _named(
        lambda: scatter_channels_reference(few, index, channels),
        lambda: ops.scatter_channels(few, index, channels),
    )


def _some(p: Problem) -> Tensor:
    """``KEPT`` of the channels, ascending."""
    return ops.topk_abs_channels(p.grad, max(1, round(KEPT * p.gates.numel())))


def norm_forward(p: Problem) -> dict[str, Call]:
    """Gate, batch norm, ReLU, in training."""
    return _named(*map(_without_graph, p.normed()))


def norm_backward(p: Problem) -> dict[str, Call]:
    """Gradients of x, gates, weight and bias; none comes from where y is about 0, on either side of the ReLU."""
    with torch.no_grad():
        y = F.batch_norm(p.x * p.spread, None, None, p.weight, p.bias, training=True)
        p.grad.masked_fill_(y.abs() < 1e-4, 0.0)
    leaves = p.x, p.gates, p.weight, p.bias
    return _named(*(p.backward(call(), *leaves) for call in p.normed()))


OPS: dict[str, Callable[[Problem], dict[str, Call]]] = {
    "channel_gate": gate_forward,
    "channel_gate backward": gate_backward,
    "topk_abs_channels": choose,
    "gather_channels": gather,
    "scatter_channels": scatter,
    "gate_norm": norm_forward,
    "gate_norm backward": norm_backward,
}


def compare(name: str, calls: dict[str, Call]) -> None:
    """Hold our results against the composed ones.

    Raises:
        GateError: if one is further off than ``MOST_ERROR`` of the largest composed value; gradients of gates behind a
            batch norm cancel to almost nothing, and are held to the largest gradient.
    """
    theirs, mine = calls[COMPOSED](), calls[OURS]()
    if isinstance(theirs, Tensor):
        theirs, mine = (theirs,), (mine,)
    if name == "topk_abs_channels":
        theirs = (theirs[0].sort().values,)
    scale = max(float(t.abs().max()) for t in theirs)
    for true, actual in zip(theirs, mine, strict=True):
        gate.hold(name, actual, true, MOST_ERROR, scale)


HEADER = ("layer", "memory", "op", "torch", "ours", "speed-up (p20-p80)", "A/A")


def table_rows(results: dict[str, Any]) -> list[list[str]]:
    """One row a layer, memory format and op."""
    return [
        [
            row["layer"],
            row["layout"],
            row["op"],
            report.duration(row["seconds"][COMPOSED]["median"]),
            report.duration(row["seconds"][OURS]["median"]),
            report.ratio(row["speedup"]),
            report.ratio(row["control"]),
        ]
        for row in results["ops"]
    ]
