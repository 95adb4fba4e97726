"""The fused pruning step on the GPU, against torch's fused AdamW alone and with the passes that people add to it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from bench.gpu import timing
from evoprune_kernels import measure, ops

ALPHA = 0.02
HYPER = {"lr": 1e-3, "weight_decay": 0.01, "eps": 1e-8}
OURS = "ours: evolution + mask"
TORCH = "torch fused AdamW"
COMPOSED = "torch fused AdamW + lerp + mask"
#: bytes a parameter in fp32, each tensor counted once for every pass that reads or writes it
_PASS = 28  # w g m v read, w m v written
_MASKED = 4 + 1 + 4  # a pass of its own: weight and bool mask read, weight written
_AVERAGED = 4 + 4 + 4  # another: average and weight read, average written
BYTES = {TORCH: _PASS, OURS: _PASS + 4 + 4 + 1, COMPOSED: _PASS + _MASKED + _AVERAGED}
LAYER = ((768, 768),) * 4 + ((3072, 768), (768, 3072))


def prepare(shapes: tuple[tuple[int, int], ...], device: str) -> dict[str, Callable[[], object]]:
    """The contenders, on weights, gradients and masks of their own."""
    generator = torch.Generator().manual_seed(0)

    def random() -> list[Tensor]:
        return [torch.randn(shape, generator=generator).to(device) for shape in shapes]

    weights, grads = random(), random()
    masks = [torch.rand(shape, generator=generator).to(device) < 0.5 for shape in shapes]
    return {
        TORCH: _torch_step(weights, grads, device).step,
        COMPOSED: _composed(weights, grads, masks, device),
        OURS: _ours(weights, grads, masks, device),
    }


def _torch_step(weights: list[Tensor], grads: list[Tensor], device: str) -> torch.optim.Optimizer:
    params = [torch.nn.Parameter(weight.clone()) for weight in weights]
    for param, grad in zip(params, grads, strict=True):
        param.grad = grad
    return torch.optim.AdamW(params, fused=True, capturable=device == "cuda", **HYPER)


def _composed(
    weights: list[Tensor], grads: list[Tensor], masks: list[Tensor], device: str
) -> Callable[[], object]:
    optimizer = _torch_step(weights, grads, device)
    raw = [param.data for group in optimizer.param_groups for param in group["params"]]
    average = [torch.zeros_like(weight) for weight in weights]

    def step() -> None:
        optimizer.step()
        torch._foreach_mul_(raw, masks)
        torch._foreach_lerp_(average, raw, ALPHA)

    return step


def _ours(
    weights: list[Tensor], grads: list[Tensor], masks: list[Tensor], device: str
) -> Callable[[], object]:
    params = [weight.clone() for weight in weights]
    first, second, average = ([torch.zeros_like(w) for w in weights] for _ in range(3))
    steps = [torch.zeros((), device=device) for _ in weights]

    def step() -> None:
        ops.adamw_step_(
            params, grads, first, second, [], average, masks, steps,
            beta1=0.9, beta2=0.999, rule="evolution", alpha=ALPHA, **HYPER,
        )  # fmt: skip

    return step


def measure_step(layers: int, device: str, rounds: int, seconds: float) -> dict[str, Any]:
    """Times, and the bandwidth that each contender's own bytes make of them."""
    shapes = LAYER * layers if device == "cuda" else ((64, 64), (7, 9))
    count = sum(rows * columns for rows, columns in shapes)
    with torch.no_grad():
        calls = {name: timing.graphed(c, device) for name, c in prepare(shapes, device).items()}
        samples = measure.interleave(
            measure.add_control(calls, TORCH),
            rounds=rounds,
            max_seconds=seconds,
            min_sample=timing.SAMPLE_SECONDS,
        )
    return {
        "parameters": count,
        "noise": samples.noise(TORCH),
        "contenders": {
            name: {
                "time": samples.timing(name).to_dict(),
                "over_torch": samples.ratio(name, TORCH).to_dict(),
                "bytes_a_parameter": BYTES[name],
                "bytes_a_second": BYTES[name] * count / samples.timing(name).median,
            }
            for name in calls
        },
    }
