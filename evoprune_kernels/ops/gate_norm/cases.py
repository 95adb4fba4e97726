"""Inputs of ``gate_norm`` for its tests and benchmarks: ``(x, gates, weight, bias)``."""

from __future__ import annotations

from typing import Any

import torch

from evoprune_kernels.ops._op import Case

F32, F16, BF16, F64 = torch.float32, torch.float16, torch.bfloat16, torch.float64


def _random(
    *shape: int,
    dtype: torch.dtype = F32,
    narrow: bool = False,
    per_sample: bool = False,
    channels_last: bool = False,
    binary: bool = True,
    affine: bool = True,
) -> Case:
    """``narrow``: gates, weight and bias in ``dtype`` too."""

    def make(generator: torch.Generator) -> tuple[Any, ...]:
        x = 2 * torch.randn(shape, generator=generator)
        x = (x + torch.randn(shape[1], *[1] * (len(shape) - 2), generator=generator)).to(dtype)
        if channels_last:
            x = x.contiguous(memory_format=torch.channels_last)
        own = dtype if narrow or dtype == F64 else F32
        of = shape[:2] if per_sample else shape[1:2]
        gates = torch.randn(of, generator=generator).to(own)
        gates = gates.masked_fill(torch.rand(of, generator=generator) < 0.4, 0.0)
        gates = gates.ne(0).to(own) if binary else gates
        weight, bias = (torch.randn(shape[1], generator=generator).to(own) for _ in range(2))
        return (x, gates, weight, bias) if affine else (x, gates, None, None)

    name = "x".join(map(str, shape)) + f"-{str(dtype)[6:]}" + "-narrow" * narrow
    name += "-per-sample" * per_sample + "-channels-last" * channels_last
    return Case(name + "-soft" * (not binary) + "-plain" * (not affine), make)


def _special(channels_last: bool) -> Case:
    def make(generator: torch.Generator) -> tuple[Any, ...]:
        x = torch.randn(2, 6, 5, 5, generator=generator)
        x[:, 0], x[0, 2, 1, 1], x[1, 4, 0, 0] = float("nan"), float("inf"), float("nan")
        x = x.contiguous(memory_format=torch.channels_last) if channels_last else x
        gates = torch.tensor([0.0, 1.0, -0.0, 0.5, 0.0, 1.0])
        return x, gates, torch.ones(6), torch.tensor([0.5, 0.0, -0.5, 0.0, 0.0, 1.0])

    return Case("nan-and-inf-where-closed" + "-channels-last" * channels_last, make)


CASES = [
    _random(2, 3, 7, 7),
    _random(4, 16, 8, 8),
    _random(3, 5, 7, 7, binary=False),
    _random(2, 3, 33, 65, binary=False),  # pieces of a plane, and a tail
    _random(2, 4, 3, 1),  # planes below a vector
    _random(3, 6, 5, 5, per_sample=True),
    _random(3, 6, 5, 5, per_sample=True, binary=False),
    _random(2, 5, 9, 9, affine=False),
    _random(2, 24, 5, 5, channels_last=True),
    _random(3, 37, 7, 9, channels_last=True, binary=False),  # blocks and channels with tails
    _random(3, 10, 9, 11, channels_last=True, per_sample=True, binary=False),
    _random(2, 3, 1, 1, channels_last=True),
    _random(2, 6, 6, 6, dtype=BF16),
    _random(3, 20, 5, 7, dtype=BF16, narrow=True, channels_last=True, binary=False),
    _random(2, 5, 6, 6, dtype=F16, per_sample=True),
    _random(3, 12, 3, 5, dtype=F16, narrow=True, channels_last=True),
    _random(2, 5, 6, 7, dtype=F64, binary=False),
    _random(2, 7, 5, 3, dtype=F64, channels_last=True, per_sample=True, binary=False),
    _random(40, 33),  # the activations of a linear layer
    _random(70, 9, per_sample=True, binary=False),
    _random(5, 4, 11),
    _special(channels_last=False),
    _special(channels_last=True),
]
