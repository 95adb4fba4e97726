"""Inputs of ``channel_gate`` for its tests and benchmarks."""

from __future__ import annotations

import torch

from evoprune_kernels.ops._op import Case

F32, F16, BF16 = torch.float32, torch.float16, torch.bfloat16


def _random(
    *shape: int,
    dtype: torch.dtype = F32,
    gate_dtype: torch.dtype | None = None,
    per_sample: bool = False,
    channels_last: bool = False,
) -> Case:
    def make(generator: torch.Generator) -> tuple[torch.Tensor, torch.Tensor]:
        x = torch.randn(shape, generator=generator).to(dtype)
        if channels_last:
            x = x.contiguous(memory_format=torch.channels_last)
        of = shape[:2] if per_sample else shape[1:2]
        gates = torch.randn(of, generator=generator).to(gate_dtype or dtype)
        closed = torch.rand(gates.shape, generator=generator) < 0.4
        return x, gates.masked_fill(closed, 0.0)

    name = "x".join(map(str, shape)) + f"-{str(dtype)[6:]}"
    name += f"-gates-{str(gate_dtype)[6:]}" if gate_dtype else ""
    name += "-per-sample" * per_sample + "-channels-last" * channels_last
    return Case(name, make)


def _special(generator: torch.Generator) -> tuple[torch.Tensor, torch.Tensor]:
    nan, inf = float("nan"), float("inf")
    x = (
        torch.tensor([nan, inf, -inf, -1.0, 0.0, -0.0])
        .expand(2, 4, 6)
        .contiguous()
        .view(2, 4, 2, 3)
    )
    return x, torch.tensor([0.0, -0.0, 2.0, -1.0])


CASES = [
    _random(2, 3, 7, 7),  # planes that start anywhere in a 16-byte vector
    _random(3, 20, 7, 7, dtype=F16),
    _random(2, 5, 14, 14, dtype=BF16, gate_dtype=F32),
    _random(2, 3, 28, 28, dtype=F16, per_sample=True),
    _random(1, 2, 27, 27, dtype=BF16),  # above the planes that share a block, odd
    _random(1, 2, 65, 64),  # a whole block a plane
    _random(2, 24, 5, 5, channels_last=True),
    _random(3, 10, 3, 5, dtype=F16, channels_last=True),  # rows that start anywhere
    _random(2, 64, 4, 4, dtype=BF16, per_sample=True, channels_last=True),
    _random(2, 3, 2, 2, dtype=F16, gate_dtype=F32, per_sample=True),
    _random(5, 33),  # the activations of a linear layer
    _random(4, 40, dtype=BF16, per_sample=True),
    _random(2, 6, 9, dtype=F16),
    _random(1, 1, 1, 1),
    _random(0, 3, 2, 2),
    _random(2, 0, 2, 2),
    _random(2, 3, 0, 2),
    Case("nan-and-inf", _special),
]
