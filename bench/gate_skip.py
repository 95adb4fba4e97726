"""Training gets cheaper as gates close: time and FLOPs of a step whose closed channels are skipped.

One sample is one forward and backward: of a ResNet-20 with its cross-entropy, or of one layer with respect to input and
Parameters. Contenders, with the same weights::

    dense        without gates
    gated        gates, everything computed: skip_closed=False
    skipped      skip_closed=True
    compacted    the plain model (layer) that is left when closed channels are removed for good

Every layer of the network has the same share of its gates closed; layers of one width close the same channels, so that
the channels of residual sums can be removed too. The gates are static and learn: their gradient is part of a step.
The threshold of ``skipping`` was chosen by "all computed" of single layers, beside shares with the threshold off.

Multiply-adds count two FLOPs; convolutions and linear layers count, three products each, two where the input needs no
gradient. Before a model or a layer is timed, its loss and gradients are held against the gated one that computes all.
"""

from __future__ import annotations

import argparse
import copy
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from bench import gate, options, report
from bench.gate_skip_models import close, compacted_layer, layer_problems
from bench.layers import Problem
from bench.methods.models import resnet
from evoprune_kernels import measure
from evoprune_kernels.nn import GatedConv2d, GatedLinear, compact, gate_model_, skipping

TESTS = [
    "tests/nn/test_gate_skip.py",
    "tests/nn/test_gate_skip_blocks.py",
    "tests/ops/test_gather_channels.py",
]
SHARES = (0.0, 0.25, 0.5, 0.75, 0.9)
#: of single layers: around the threshold too
LAYER_SHARES = (1 / 16, 1 / 8, *SHARES[1:])
FORMATS = {"contiguous": torch.contiguous_format, "channels_last": torch.channels_last}
DENSE, GATED, ALL = "dense", "gated", "all computed"
#: largest difference of a gradient, over the largest of its tensor: fp32 sums in another order
MOST_ERROR = 1e-3


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The options of ``python -m bench gate_skip``."""
    options.add_options(parser, "gate-skip", rounds=15, seconds=90.0, one="row")
    parser.add_argument("--part", choices=("model", "layers", "both"), default="both")
    parser.add_argument("--format", choices=(*FORMATS, "both"), default="both")


def run(args: argparse.Namespace) -> dict[str, Any]:
    """Check, measure, print, write; returns the record."""
    passed = gate.check(TESTS, skip=args.no_gate)
    rounds = 3 if args.quick else args.rounds
    formats = list(FORMATS) if args.format == "both" else [args.format]
    results: dict[str, Any] = {"model": [], "layers": []}
    with measure.threads(args.threads):
        for name in formats:
            if args.part != "layers":
                results["model"].append(measure_model(name, args.quick, rounds, args.seconds))
            if args.part != "model":
                for problem in layer_problems(args.quick):
                    results["layers"].append(measure_layer(problem, name, rounds, args.seconds))
    record = report.build("gate-skip", results, gate=passed, threads=args.threads, quick=args.quick)
    print(report.table(HEADER, table_rows(record["results"])))
    print(report.table(LAYER_HEADER, layer_rows(record["results"])))
    print(f"wrote {report.write(record, args.out)}")
    return record


def skipped(share: float) -> str:
    """The contender's name."""
    return f"skipped, {share:.3g} closed"


def compacted(share: float) -> str:
    """The contender's name."""
    return f"compacted, {share:.3g} closed"


def gated(share: float) -> str:
    """The contender's name."""
    return f"{GATED}, {share:.3g} closed"


KINDS = {GATED: gated, "skipped": skipped, "compacted": compacted}


# ---- the network ----
def measure_model(memory: str, quick: bool, rounds: int, seconds: float) -> dict[str, Any]:
    """A step of the ResNet-20 with every share of its gates closed, in turns."""
    torch.manual_seed(0)
    width, blocks, batch, size = (8, 1, 4, 8) if quick else (16, 3, 64, 32)
    dense = resnet(3, width, blocks)
    images = torch.randn(batch, 3, size, size).contiguous(memory_format=FORMATS[memory])
    labels = torch.randint(0, 10, (batch,))
    models: dict[str, nn.Module] = {DENSE: dense}
    reasons: dict[float, str | None] = {}
    for share in SHARES:
        found, reasons[share] = contenders_of(dense, share, images)
        models |= found
    for name, model in models.items():
        models[name] = model.to(memory_format=FORMATS[memory]).train()  # type: ignore[call-overload]
    for share in SHARES:
        check_model(models[gated(share)], models[skipped(share)], images, labels)
    steps: dict[str, Callable[[], object]] = {
        name: lambda m=model: step(m, images, labels)  # type: ignore[misc]
        for name, model in models.items()
    }
    steps = measure.add_control(steps, DENSE)
    samples = measure.interleave(steps, rounds=rounds, max_seconds=seconds, min_rounds=3)
    full = flops(dense, images)
    return {
        "model": f"ResNet-{6 * blocks + 2}, width {width}, {batch}x3x{size}x{size}",
        "memory_format": memory,
        "dense_flops": full,
        "seconds": {name: samples.timing(name).to_dict() for name in steps},
        "control": samples.control(DENSE).to_dict(),
        "closed": [
            {
                "share": share,
                "flops_saved": {
                    kind: 1 - flops(models[name(share)], images) / full
                    for kind, name in KINDS.items()
                    if name(share) in models
                },
                "speedup": {
                    kind: samples.ratio(DENSE, name(share)).to_dict()
                    for kind, name in KINDS.items()
                    if name(share) in models
                },
                "left_out": {"compacted": reasons[share]} if reasons[share] else {},
                "skipped_over_gated": samples.ratio(gated(share), skipped(share)).to_dict(),
            }
            for share in SHARES
        ],
    }


def contenders_of(
    dense: nn.Module, share: float, images: Tensor
) -> tuple[dict[str, nn.Module], str | None]:
    """Copies of the network with ``share`` of the gates of every layer closed; why the compacted one is left out."""
    found: dict[str, nn.Module] = {}
    for name, skip in ((gated(share), False), (skipped(share), True)):
        model = copy.deepcopy(dense)
        gate_model_(model, skip_closed=skip)
        for layer in model.modules():
            if isinstance(layer, GatedConv2d):
                close(layer, share)
        found[name] = model
    small = compact(found[gated(share)], images[:2]).model
    reason = left_out(small, images)
    if reason is None:
        found[compacted(share)] = small
    return found, reason


def left_out(model: nn.Module, images: Tensor) -> str | None:
    """Why a model is not run: its step corrupts memory in torch 2.13 on AVX2; None where it can be."""
    for name, m in model.named_modules():
        if images.is_contiguous() or not isinstance(m, nn.Conv2d):
            continue
        if m.kernel_size == (1, 1) and m.stride != (1, 1) and 1 < m.in_channels < 8:
            what = f"a 1x1 convolution of {m.in_channels} channels, stride {m.stride[0]}"
            return f"torch 2.13 corrupts memory: {name} is {what}, channels last"
    return None


def step(model: nn.Module, images: Tensor, labels: Tensor) -> Tensor:
    """Forward, cross-entropy and backward, without an optimizer."""
    model.zero_grad(set_to_none=True)
    loss = F.cross_entropy(model(images), labels)
    loss.backward()  # type: ignore[no-untyped-call]
    return loss


def check_model(all_of_it: nn.Module, skips: nn.Module, images: Tensor, labels: Tensor) -> None:
    """Hold loss and gradients of the one that skips against the one that computes everything.

    Raises:
        GateError: if one differs by more than ``MOST_ERROR`` of the largest entry of its tensor.
    """
    true, loss = step(all_of_it, images, labels), step(skips, images, labels)
    pairs = [("loss", true, loss)]
    others = dict(skips.named_parameters())
    for name, parameter in all_of_it.named_parameters():
        if not name.endswith("gate.theta"):
            pairs.append((name, parameter.grad, others[name].grad))  # type: ignore[arg-type]
    compare(type(skips).__name__, pairs)


def compare(what: str, pairs: list[tuple[str, Tensor, Tensor]]) -> None:
    """``GateError`` where the second tensor is not the first one to rounding."""
    for name, true, found in pairs:
        gate.hold(f"{what}, {name}, against all computed", found, true, MOST_ERROR)


def flops(model: nn.Module, images: Tensor) -> float:
    """FLOPs of a step that are computed: three products a layer, two where the input needs no gradient."""
    total = 0.0

    def count(module: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> None:
        nonlocal total
        assert isinstance(module, nn.Conv2d | nn.Linear)
        computed = output.shape[1]
        if isinstance(module, GatedConv2d) and module.skip_closed:
            index = skipping.open_channels(module.gate.mean_gates())
            computed = computed if index is None else index.numel()
        places = output.numel() // output.shape[1]
        products = 3 if inputs[0].requires_grad else 2
        total += products * 2.0 * places * computed * module.weight[0].numel()

    layers = [m for m in model.modules() if isinstance(m, nn.Conv2d | nn.Linear)]
    handles = [layer.register_forward_hook(count) for layer in layers]
    model(images)
    for handle in handles:
        handle.remove()
    return total


# ---- single layers ----
@contextmanager
def threshold(share: float) -> Iterator[None]:
    """Layers skip from ``share`` of closed channels on inside; 0: always, 2: never."""
    before = skipping.LEAST_CLOSED, skipping.LEAST_SHARE
    skipping.LEAST_CLOSED, skipping.LEAST_SHARE = 1, share
    try:
        yield
    finally:
        skipping.LEAST_CLOSED, skipping.LEAST_SHARE = before


def measure_layer(problem: Problem, memory: str, rounds: int, seconds: float) -> dict[str, Any]:
    """One layer with every share of its gates closed, the threshold off, in turns."""
    torch.manual_seed(0)
    dense = problem.layer()
    x = torch.randn(problem.shape, requires_grad=True)
    if x.dim() == 4:
        x = x.detach().contiguous(memory_format=FORMATS[memory]).requires_grad_()
        dense = dense.to(memory_format=FORMATS[memory])  # type: ignore[call-overload]
    dy = torch.randn_like(dense(x))
    layers = {share: with_gates(dense, share, skip=True) for share in LAYER_SHARES}
    half = with_gates(dense, 0.5, skip=False)
    for share, layer in layers.items():
        with threshold(0.0):
            check_layer(with_gates(dense, share, skip=False), layer, x, dy)
    calls: dict[str, Callable[[], object]] = {
        DENSE: lambda: both_ways(dense, x, dy),
        GATED: lambda: both_ways(half, x, dy),
        ALL: lambda: both_ways_at(2.0, layers[0.5], x, dy),
    }
    for share, layer in layers.items():
        small, some = compacted_layer(problem, dense, layer, dy)
        calls[skipped(share)] = lambda layer=layer: both_ways_at(0.0, layer, x, dy)  # type: ignore[misc]
        calls[compacted(share)] = lambda s=small, d=some: both_ways(s, x, d)  # type: ignore[misc]
    calls = measure.add_control(calls, DENSE)
    samples = measure.interleave(
        calls, rounds=rounds, min_sample=0.005, max_seconds=seconds, min_rounds=3
    )
    return {
        "layer": problem.name,
        "memory_format": memory if x.dim() == 4 else "contiguous",
        "seconds": {name: samples.timing(name).to_dict() for name in calls},
        "control": samples.control(DENSE).to_dict(),
        "gated": samples.ratio(DENSE, GATED).to_dict(),
        "all_computed": samples.ratio(DENSE, ALL).to_dict(),
        "closed": [
            {
                "share": share,
                "flops_saved": 1 - layer.gate.freeze().double().mean().item(),
                "speedup": samples.ratio(DENSE, skipped(share)).to_dict(),
                "against_all_computed": samples.ratio(ALL, skipped(share)).to_dict(),
                "compacted": samples.ratio(DENSE, compacted(share)).to_dict(),
            }
            for share, layer in layers.items()
        ],
    }


def with_gates(dense: nn.Module, share: float, *, skip: bool) -> GatedConv2d | GatedLinear:
    """The layer around the Parameters of ``dense`` with ``share`` of its gates closed."""
    layer: GatedConv2d | GatedLinear
    if isinstance(dense, nn.Conv2d):
        layer = GatedConv2d.from_conv(dense, skip_closed=skip)
    else:
        assert isinstance(dense, nn.Linear)
        layer = GatedLinear.from_linear(dense, skip_closed=skip)
    close(layer, share)
    return layer


def both_ways(layer: nn.Module, x: Tensor, dy: Tensor) -> tuple[Tensor, ...]:
    """Forward and the gradients of input and Parameters."""
    return torch.autograd.grad(layer(x), [x, *layer.parameters()], dy)


def both_ways_at(share: float, layer: nn.Module, x: Tensor, dy: Tensor) -> tuple[Tensor, ...]:
    """The same with another threshold."""
    with threshold(share):
        return both_ways(layer, x, dy)


def check_layer(all_of_it: nn.Module, skips: nn.Module, x: Tensor, dy: Tensor) -> None:
    """As ``check_model``, for a layer."""
    names = ["x", *dict(skips.named_parameters())]
    grads = zip(names, both_ways(all_of_it, x, dy), both_ways(skips, x, dy), strict=True)
    pairs = [pair for pair in grads if pair[0] != "gate.theta"]
    compare(str(skips), [("y", all_of_it(x).detach(), skips(x).detach()), *pairs])


# ---- tables ----
HEADER = (
    "network", "memory format", "gates closed", "dense step", "gated", "skipped", "FLOPs saved",
    "compacted", "FLOPs saved", "A/A",
)  # fmt: skip
LAYER_HEADER = (
    "layer", "memory format", "dense", "gated", ALL, *(skipped(s) for s in LAYER_SHARES), "A/A",
)  # fmt: skip


def table_rows(results: dict[str, Any]) -> list[list[str]]:
    """One row a share of closed gates: speed-ups against dense beside the FLOPs saved."""
    return [
        [
            row["model"],
            row["memory_format"],
            f"{closed['share']:.0%}",
            report.duration(row["seconds"][DENSE]["median"]),
            report.ratio(closed["speedup"][GATED]),
            *(cell for kind in ("skipped", "compacted") for cell in saved(closed, kind)),
            report.ratio(row["control"]),
        ]
        for row in results["model"]
        for closed in row["closed"]
    ]


def saved(closed: dict[str, Any], kind: str) -> tuple[str, str]:
    """Speed-up and FLOPs saved; dashes for a model that is ``left_out``."""
    if kind not in closed["speedup"]:
        return "-", "-"
    return report.ratio(closed["speedup"][kind]), f"{closed['flops_saved'][kind]:.0%}"


def layer_rows(results: dict[str, Any]) -> list[list[str]]:
    """One row a layer: speed-ups against dense, the compacted layer's in parentheses."""
    return [
        [
            row["layer"],
            row["memory_format"],
            report.duration(row["seconds"][DENSE]["median"]),
            report.ratio(row["gated"]),
            report.ratio(row["all_computed"]),
            *(
                f"{c['speedup']['median']:.2f}x (compacted {c['compacted']['median']:.2f}x)"
                for c in row["closed"]
            ),
            report.ratio(row["control"]),
        ]
        for row in results["layers"]
    ]
