"""Inputs of ``block_linear`` for its tests and benchmarks: ``(x, packed, bias, activation)``."""

from __future__ import annotations

from typing import Any

import torch

from evoprune_kernels.formats import BlockWeight
from evoprune_kernels.ops._op import Case
from evoprune_kernels.ops.block_pack.cases import block_mask


def _case(
    tokens: tuple[int, ...],
    shape: tuple[int, int],
    block: tuple[int, int] = (16, 16),
    density: float = 0.5,
    dtype: torch.dtype = torch.float32,
    bias: torch.dtype | None = torch.float32,
    activation: str = "none",
) -> Case:
    rows, columns = shape

    def make(generator: torch.Generator) -> tuple[Any, ...]:
        weight = torch.randn(rows, columns, generator=generator).to(dtype)
        mask = block_mask(rows, columns, *block, density, generator)
        packed = BlockWeight.pack(weight, *block, mask=mask)
        x = torch.randn(*tokens, columns, generator=generator).to(dtype)
        b = None if bias is None else torch.randn(rows, generator=generator).to(bias)
        return x, packed, b, activation

    size = "x".join(map(str, (*tokens, *shape)))
    bias_name = "nobias" if bias is None else f"bias-{str(bias)[6:]}"
    name = f"{size}-{block[0]}x{block[1]}-{density}-{str(dtype)[6:]}-{bias_name}-{activation}"
    return Case(name, make)


BF16 = torch.bfloat16
ACTIVATIONS = ("relu", "gelu", "gelu_tanh", "silu")
BLOCKS = [(32, 32), (64, 64), (16, 1), (48, 5), (8, 8), (4, 4), (2, 3), (1, 16), (3, 7), (24, 1)]
CASES = [
    *[_case((t,), (64, 96)) for t in (1, 2, 3, 4, 5, 6, 7, 8, 12, 16, 23, 64, 70)],
    _case((1,), (33, 61)),  # tails of rows and columns
    _case((13,), (33, 61), activation="gelu"),
    _case((129,), (50, 257), activation="silu"),
    _case((4,), (20, 3)),
    _case((8,), (1, 1), density=1.0),
    _case((2, 3), (32, 64)),
    _case((), (32, 64)),
    _case((0,), (16, 32)),
    _case((2, 0), (16, 32)),
    _case((3,), (0, 32)),
    _case((3,), (16, 0)),
    _case((5,), (48, 64), density=0.0),
    _case((9,), (48, 64), density=0.1, bias=None),
    *[_case((7,), (40, 72), activation=name) for name in ACTIVATIONS],
    *[_case((t,), (70, 90), block) for t in (1, 6, 17, 67) for block in BLOCKS],
    _case((1,), (33, 100), dtype=BF16),
    _case((11,), (33, 100), dtype=BF16, bias=BF16, activation="gelu"),
    _case((70,), (33, 128), dtype=BF16, bias=None, activation="relu"),
    _case((6,), (19, 50), (4, 2), dtype=BF16),
    _case((1,), (19, 50), (1, 8), dtype=BF16),
    _case((6,), (32, 48), bias=BF16),
]
