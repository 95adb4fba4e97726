"""The compacted model against the gated one, its costs and its time."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves

from evoprune_kernels import measure
from evoprune_kernels._check import check
from evoprune_kernels.nn.compaction.report import Latency

#: largest difference of an output, as a share of its largest value, that counts as rounding
ROUNDING = {torch.float64: 1e-10, torch.float32: 1e-4, torch.bfloat16: 5e-2, torch.float16: 1e-2}
#: seconds after which the measurement ends, with five rounds at least
MAX_SECONDS = 10.0


def compare(
    gated: nn.Module, plain: nn.Module, args: tuple[Any, ...], what: str = "compacted"
) -> float:
    """Largest difference as a share of the largest output; ``RuntimeError`` above rounding."""
    with torch.no_grad():
        want, got = tree_leaves(gated(*args)), tree_leaves(plain(*args))
    worst = 0.0
    for a, b in zip(want, got, strict=True):
        if not isinstance(a, Tensor) or not a.is_floating_point() or a.numel() == 0:
            continue
        check(
            a.shape == b.shape,
            f"expected an output of shape {tuple(a.shape)}, got {tuple(b.shape)}",
        )
        scale = max(float(a.abs().max()), 1e-30)
        error = float((a.double() - b.double()).abs().max()) / scale
        if not error <= ROUNDING[a.dtype]:
            raise RuntimeError(
                f"the {what} model differs from the gated one by {error:.1e} of its largest output {scale:.3g}, "
                f"rounding would be at most {ROUNDING[a.dtype]:.0e}"
            )
        worst = max(worst, error)
    return worst


def costs(model: nn.Module, args: tuple[Any, ...]) -> tuple[int, int]:
    """Parameters, and FLOPs of convolutions and linear layers in one forward."""
    total = 0

    def count(module: nn.Module, inputs: Any, output: Tensor) -> None:
        nonlocal total
        total += 2 * output.numel() * module.weight[0].numel()  # type: ignore[union-attr,operator,index]

    layers = [m for m in model.modules() if isinstance(m, nn.Conv2d | nn.Linear)]
    handles = [layer.register_forward_hook(count) for layer in layers]
    try:
        with torch.no_grad():
            model(*args)
    finally:
        for handle in handles:
            handle.remove()
    return sum(p.numel() for p in model.parameters()), total


def latency(dense: nn.Module, plain: nn.Module, args: tuple[Any, ...], rounds: int) -> Latency:
    """Both models, and the dense one against itself, in ``rounds`` interleaved rounds."""
    devices = {t.device for t in tree_leaves(args) if isinstance(t, Tensor)}
    contenders = {"dense": lambda: dense(*args), "compacted": lambda: plain(*args)}
    with torch.no_grad():
        result = measure.interleave(
            measure.add_control(contenders, "dense"),
            rounds=rounds,
            max_seconds=MAX_SECONDS,
            synchronize=measure.synchronizer(*devices),
        )
    return Latency(
        result.timing("dense"),
        result.timing("compacted"),
        result.ratio("dense", "compacted"),
        result.noise("dense"),
        torch.get_num_threads(),
    )
