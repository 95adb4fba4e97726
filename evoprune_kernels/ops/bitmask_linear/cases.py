"""Inputs of ``bitmask_linear`` for its tests and benchmarks: ``(x, packed, bias, activation)``."""

from __future__ import annotations

from typing import Any

import torch

from evoprune_kernels.formats import BitmaskWeight
from evoprune_kernels.ops._op import Case


def _case(
    tokens: tuple[int, ...],
    shape: tuple[int, int],
    density: float = 0.3,
    dtype: torch.dtype = torch.float32,
    bias: torch.dtype | None = torch.float32,
    activation: str = "none",
) -> Case:
    rows, columns = shape

    def make(generator: torch.Generator) -> tuple[Any, ...]:
        weight = torch.randn(rows, columns, generator=generator).to(dtype)
        mask = torch.rand(rows, columns, generator=generator) < density
        packed = BitmaskWeight.pack(weight, mask=mask)
        x = torch.randn(*tokens, columns, generator=generator).to(dtype)
        b = None if bias is None else torch.randn(rows, generator=generator).to(bias)
        return x, packed, b, activation

    size = "x".join(map(str, (*tokens, *shape)))
    bias_name = "nobias" if bias is None else f"bias-{str(bias)[6:]}"
    return Case(f"{size}-{density}-{str(dtype)[6:]}-{bias_name}-{activation}", make)


BF16 = torch.bfloat16
ACTIVATIONS = ("relu", "gelu", "gelu_tanh", "silu")
CASES = [
    *[_case((t,), (40, 96)) for t in (1, 2, 3, 4, 7, 8, 9, 15, 16, 17, 31, 33, 64, 65, 130)],
    *[_case((t,), (33, 61), 0.1) for t in (1, 5, 24, 70)],
    _case((129,), (50, 257), activation="silu"),
    _case((4,), (20, 3)),
    _case((8,), (1, 1), 1.0),
    _case((2, 3), (24, 64)),
    _case((), (24, 64)),
    _case((0,), (16, 32)),
    _case((2, 0), (16, 32)),
    _case((3,), (0, 32)),
    _case((3,), (16, 0)),
    _case((5,), (48, 64), 0.0),
    _case((1,), (48, 64), 0.0, bias=None),
    _case((3,), (2, 70000), 0.01),  # columns beyond 16 bits
    _case((1,), (2, 70000), 0.01),
    *[_case((7,), (18, 72), activation=name) for name in ACTIVATIONS],
    _case((1,), (33, 100), dtype=BF16),
    _case((11,), (33, 100), dtype=BF16, bias=BF16, activation="gelu"),
    _case((70,), (33, 128), dtype=BF16, bias=None, activation="relu"),
    _case((6,), (19, 50), bias=BF16),
]
