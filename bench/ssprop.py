"""The backward of ssProp's layers against torch's dense backward, with the FLOPs saved beside the time saved.

One sample is one backward of one layer: ``torch.autograd.grad`` of a finished forward with respect to input, weight and
bias. "masked dY" is what people compose without these layers: the same channels by ``torch.topk``, the others times
zero, then the dense backward of torch. Multiply-adds count two FLOPs; the FLOPs of the scores are charged to ours::

    dense = 2 * (2 * B * H_out * W_out * N * C / groups * kh * kw)      dgrad and wgrad
    ours  = dense * kept channels / N + 2 * elements of dY              absolute value and sum

Before a layer is timed its gradients are held against the dense backward of a dY whose other channels are zero.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from bench import gate, options, report
from bench.layers import Problem, conv, linear
from evoprune_kernels import measure
from evoprune_kernels.nn import SSPropConv2d, SSPropLinear

TESTS = ["tests/nn/test_ssprop.py", "tests/ops/test_topk_channels.py"]
SHARES = (1.0, 0.6, 0.2)
DENSE = "dense"
MASKED = "masked dY, kept 0.2"
#: largest error against the masked dense backward, over the largest gradient: fp32 sums in another order
MOST_ERROR = 1e-4


FULL = (
    conv("ResNet-20", 128, 16, 16, 32),
    conv("ResNet-20", 128, 16, 32, 32, stride=2),
    conv("ResNet-20", 128, 32, 32, 16),
    conv("ResNet-20", 128, 64, 64, 8),
    conv("ResNet-18", 8, 64, 64, 56),
    conv("ResNet-18", 8, 128, 128, 28),
    conv("ResNet-18", 8, 256, 256, 14),
    conv("ResNet-18", 8, 512, 512, 7),
    conv("ResNet-18", 8, 128, 256, 28, k=1, stride=2),
    conv("MobileNet", 8, 256, 256, 28, groups=256),
    linear(2048, 768, 768),
    linear(2048, 768, 3072),
    linear(2048, 3072, 768),
)
QUICK = (
    conv("ResNet-20", 2, 16, 16, 8),
    conv("MobileNet", 2, 8, 8, 8, groups=8),
    linear(16, 32, 20),
)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The options of ``python -m bench ssprop``."""
    options.add_options(parser, "ssprop", rounds=15, seconds=30.0, one="layer")


def run(args: argparse.Namespace) -> dict[str, Any]:
    """Check, measure, print, write; returns the record."""
    passed = gate.check(TESTS, skip=args.no_gate)
    problems, rounds = (QUICK, 3) if args.quick else (FULL, args.rounds)
    with measure.threads(args.threads):
        rows = [measure_layer(problem, rounds, args.seconds) for problem in problems]
    record = report.build(
        "ssprop", {"layers": rows}, gate=passed, threads=args.threads, quick=args.quick
    )
    print(report.table(HEADER, table_rows(record["results"])))
    print(f"wrote {report.write(record, args.out)}")
    return record


def measure_layer(problem: Problem, rounds: int, seconds: float) -> dict[str, Any]:
    """The contenders of one layer, checked, then in turns."""
    torch.manual_seed(0)
    dense = problem.layer()
    x = torch.randn(problem.shape, requires_grad=True)
    grad = torch.randn_like(dense(x))
    grad *= torch.rand(channel_shape(grad)) + 0.1  # channels of different sizes, as in training
    layers = {share: ours_of(dense, share) for share in SHARES}
    for layer in layers.values():
        check(dense, layer, x, grad)
    contenders: dict[str, Callable[[], object]] = {DENSE: backward(dense, x, grad)}
    contenders[MASKED] = masked_backward(dense, x, grad, layers[0.2].kept_channels)
    contenders |= {ours(share): backward(layer, x, grad) for share, layer in layers.items()}
    contenders = measure.add_control(contenders, DENSE)
    samples = measure.interleave(
        contenders, rounds=rounds, min_sample=0.005, max_seconds=seconds, min_rounds=3
    )
    flops = backward_flops(dense, grad)
    return {
        "layer": problem.name,
        "input": list(problem.shape),
        "dense_flops": flops,
        "seconds": {name: samples.timing(name).to_dict() for name in contenders},
        "control": samples.control(DENSE).to_dict(),
        "masked_speedup": samples.ratio(DENSE, MASKED).to_dict(),
        "ours": [
            {
                "kept": share,
                "channels": layer.kept_channels,
                "reason": layer.reason,
                "flops_saved": 1 - sparse_flops(flops, layer, grad) / flops,
                "speedup": samples.ratio(DENSE, ours(share)).to_dict(),
            }
            for share, layer in layers.items()
        ],
    }


def ours(share: float) -> str:
    """The contender's name."""
    return f"ours, kept {share:g}"


def ours_of(dense: nn.Conv2d | nn.Linear, share: float) -> SSPropConv2d | SSPropLinear:
    """Our layer around the Parameters of ``dense``."""
    if isinstance(dense, nn.Conv2d):
        return SSPropConv2d.from_conv(dense, kept=share)
    return SSPropLinear.from_linear(dense, kept=share)


def channel_dim(grad: Tensor) -> int:
    """Where the output channels of a dY are."""
    return 1 if grad.dim() == 4 else grad.dim() - 1


def channel_shape(grad: Tensor) -> list[int]:
    """A shape that gives each channel of dY one number."""
    return [size if d == channel_dim(grad) else 1 for d, size in enumerate(grad.shape)]


def backward(layer: nn.Module, x: Tensor, grad: Tensor) -> Callable[[], tuple[Tensor, ...]]:
    """The backward of one finished forward, as often as wanted."""
    y, wanted = layer(x), [x, *layer.parameters()]
    return lambda: torch.autograd.grad(y, wanted, grad, retain_graph=True)


def zero_others(grad: Tensor, channels: Tensor) -> Tensor:
    """dY with every channel but ``channels`` times zero."""
    keep = torch.zeros(channel_shape(grad))
    keep.view(-1)[channels] = 1
    return grad * keep


def masked_backward(dense: nn.Module, x: Tensor, grad: Tensor, kept: int) -> Callable[[], object]:
    """Scores, ``torch.topk``, a mask and torch's dense backward."""
    y, wanted = dense(x), [x, *dense.parameters()]
    others = [d for d in range(grad.dim()) if d != channel_dim(grad)]

    def call() -> object:
        channels = grad.abs().mean(others).topk(kept, sorted=False).indices
        return torch.autograd.grad(y, wanted, zero_others(grad, channels), retain_graph=True)

    return call


def check(dense: nn.Module, layer: SSPropConv2d | SSPropLinear, x: Tensor, grad: Tensor) -> None:
    """Hold the gradients of ``layer`` against the dense backward of a masked dY.

    Raises:
        GateError: if one is further off than ``MOST_ERROR`` of the largest true gradient.
    """
    scores = grad.double().abs().movedim(channel_dim(grad), 0).flatten(1).mean(1)
    channels = scores.sort(descending=True, stable=True).indices[: layer.kept_channels]
    expected = backward(dense, x, zero_others(grad, channels))()
    for actual, true in zip(backward(layer, x, grad)(), expected, strict=True):
        gate.hold(f"{layer} against a masked dense dY", actual, true, MOST_ERROR)


def backward_flops(layer: nn.Conv2d | nn.Linear, grad: Tensor) -> int:
    """FLOPs of dgrad and wgrad, two for a multiply-add."""
    per_output = layer.weight[0].numel()  # C / groups * kh * kw
    return 2 * 2 * grad.numel() * per_output


def sparse_flops(dense: int, layer: SSPropConv2d | SSPropLinear, grad: Tensor) -> float:
    """FLOPs of our backward: the kept channels' part, and the scores."""
    if layer.reason:
        return dense
    return dense * layer.kept_channels / layer.weight.shape[0] + 2 * grad.numel()


HEADER = (
    "layer",
    "dense backward",
    MASKED,
    *(f"{ours(p)}: speed-up (p20-p80), FLOPs saved" for p in SHARES),
    "A/A",
)


def table_rows(results: dict[str, Any]) -> list[list[str]]:
    """One row a layer: time saved beside FLOPs saved."""
    return [
        [
            row["layer"],
            report.duration(row["seconds"][DENSE]["median"]),
            report.ratio(row["masked_speedup"]),
            *(f"{report.ratio(o['speedup'])}, {o['flops_saved']:.0%}" for o in row["ours"]),
            report.ratio(row["control"]),
        ]
        for row in results["layers"]
    ]
