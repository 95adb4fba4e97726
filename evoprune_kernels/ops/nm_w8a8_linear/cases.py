"""Inputs of ``nm_w8a8_linear`` for its tests and benchmarks: ``(x, packed, bias, activation)``."""

from __future__ import annotations

from typing import Any

import torch

from evoprune_kernels.formats import NMWeight
from evoprune_kernels.ops._op import Case
from evoprune_kernels.ops.nm_pack.cases import random_weight

F32, F16, BF16 = torch.float32, torch.float16, torch.bfloat16


def _case(
    tokens: tuple[int, ...],
    shape: tuple[int, int],
    dtype: torch.dtype = F16,
    bias: torch.dtype | None = F32,
    activation: str = "none",
) -> Case:
    def make(generator: torch.Generator) -> tuple[Any, ...]:
        weight, mask = random_weight(generator, *shape, 2, 4)
        packed = NMWeight.pack(weight, 2, 4, mask=mask).quantize()
        x = torch.randn(*tokens, shape[1], generator=generator).to(dtype)
        b = None if bias is None else torch.randn(shape[0], generator=generator).to(bias)
        return x, packed, b, activation

    size = "x".join(map(str, (*tokens, *shape)))
    return Case(f"{size}-{str(dtype)[6:]}-{activation}", make)


CASES = [
    _case((128,), (128, 256)),
    _case((9,), (33, 61), BF16, BF16, "relu"),  # tails of everything
    _case((130,), (72, 200), F32, None),  # a chunk of 16 columns that is half x, half padding
    _case((5,), (130, 64), F32, BF16, "relu"),
    _case((2, 3), (24, 80), BF16),
    _case((3,), (64, 1), F16),
    _case((3,), (1, 2000), F32),  # split sums
    _case((), (16, 32), F32),
    _case((0,), (16, 32)),
    _case((3,), (0, 32)),
    _case((3,), (16, 0), F16, F32, "relu"),
    *[_case((7,), (20, 96), F16, activation=a) for a in ("gelu", "gelu_tanh", "silu")],
]
