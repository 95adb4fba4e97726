"""Inputs of ``nm_linear`` for its tests and benchmarks: ``(x, packed, bias, activation)``."""

from __future__ import annotations

from typing import Any

import torch

from evoprune_kernels.formats import NM, NMWeight
from evoprune_kernels.formats.nm import repeat_rows
from evoprune_kernels.ops._op import Case
from evoprune_kernels.ops.nm_pack.cases import random_weight


def _case(
    tokens: tuple[int, ...],
    shape: tuple[int, int],
    pattern: tuple[int, int] | tuple[int, int, int] = (2, 4),
    dtype: torch.dtype = torch.float32,
    bias: torch.dtype | None = torch.float32,
    activation: str = "none",
) -> Case:
    rows, columns = shape

    def make(generator: torch.Generator) -> tuple[Any, ...]:
        weight, mask = random_weight(generator, rows, columns, *pattern[:2])
        if len(pattern) == 3:  # a group of rows keeps the columns of its first row
            mask = repeat_rows(mask[:: pattern[2]], pattern[2], rows)
        packed = NMWeight.pack(weight.to(dtype), *pattern, mask=mask)
        x = torch.randn(*tokens, columns, generator=generator).to(dtype)
        b = None if bias is None else torch.randn(rows, generator=generator).to(bias)
        return x, packed, b, activation

    size = "x".join(map(str, (*tokens, *shape)))
    bias_name = "nobias" if bias is None else f"bias-{str(bias)[6:]}"
    name = f"{size}-{NM(*pattern)}-{str(dtype)[6:]}-{bias_name}-{activation}"
    return Case(name, make)


BF16 = torch.bfloat16
ACTIVATIONS = ("relu", "gelu", "gelu_tanh", "silu")
CASES = [
    _case((1,), (16, 32)),
    _case((1,), (64, 256), bias=None),
    _case((2,), (48, 96)),
    _case((3,), (33, 61)),  # tails of rows, words and groups
    _case((5,), (17, 68), bias=None),
    _case((8,), (1, 1)),
    _case((13,), (40, 130), activation="gelu"),
    _case((70,), (35, 100)),
    _case((129,), (50, 257), activation="silu"),
    _case((4,), (20, 3)),
    _case((2, 3), (24, 64)),
    _case((), (24, 64)),
    _case((0,), (16, 32)),
    _case((2, 0), (16, 32)),
    _case((3,), (0, 32)),
    _case((3,), (16, 0)),
    *[_case((7,), (18, 72), activation=name) for name in ACTIVATIONS],
    *[
        _case((t,), (21, 90), pattern)
        for t in (1, 6, 40)
        for pattern in [(1, 4), (3, 4), (4, 4), (1, 2), (2, 3), (1, 1), (4, 8), (1, 8)]
    ],
    *[
        _case((t,), (21, 90), pattern)
        for t in (1, 9)
        for pattern in [(2, 5), (3, 7), (9, 16), (2, 12), (5, 17), (7, 32), (32, 32)]
    ],
    *[
        _case((t,), shape, (2, 4, 16), activation="relu")
        for t in (1, 2, 5, 13, 40)
        for shape in [(16, 32), (35, 101), (48, 3)]
    ],
    _case((3,), (0, 32), (2, 4, 16)),
    _case((3,), (16, 0), (2, 4, 16)),
    _case((4,), (20, 90), (3, 7, 16)),
    _case((7,), (33, 100), (2, 4, 16), dtype=BF16, bias=BF16),
    _case((2,), (17, 70000), (1, 32, 16)),  # columns of 32 bits
    _case((1,), (33, 100), dtype=BF16),
    _case((11,), (33, 100), dtype=BF16, bias=BF16, activation="gelu"),
    _case((70,), (33, 128), dtype=BF16, bias=None, activation="relu"),
    _case((6,), (19, 50), (2, 8), dtype=BF16),
    _case((6,), (19, 50), bias=BF16),
]
