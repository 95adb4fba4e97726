"""Inputs of ``w8a8_linear`` for its tests and benchmarks: ``(x, packed, bias, activation)``."""

from __future__ import annotations

from typing import Any

import torch

from evoprune_kernels import formats
from evoprune_kernels.formats import NM, Block
from evoprune_kernels.ops._op import Case
from evoprune_kernels.ops.block_pack.cases import block_mask


def random_mask(
    pattern: formats.Pattern, shape: tuple[int, int], density: float, generator: torch.Generator
) -> torch.Tensor:
    """A mask of the pattern; ``density`` is that of blocks."""
    rows, columns = shape
    if isinstance(pattern, Block):
        return block_mask(rows, columns, pattern.rows, pattern.columns, density, generator)
    assert isinstance(pattern, NM)
    groups = -(-columns // pattern.m)
    scores = torch.rand(-(-rows // pattern.shared), groups, pattern.m, generator=generator)
    kept = torch.zeros_like(scores).scatter(2, scores.topk(pattern.n).indices, 1.0).bool()
    return kept.flatten(1).repeat_interleave(pattern.shared, 0)[:rows, :columns]


def _case(
    tokens: tuple[int, ...],
    shape: tuple[int, int],
    pattern: str,
    density: float = 0.5,
    dtype: torch.dtype = torch.float32,
    bias: torch.dtype | None = torch.float32,
    activation: str = "none",
) -> Case:
    parsed = formats.parse_pattern(pattern)

    def make(generator: torch.Generator) -> tuple[Any, ...]:
        weight = torch.randn(*shape, generator=generator)
        mask = random_mask(parsed, shape, density, generator)
        packed = formats.pack(weight, parsed, mask).quantize()
        x = torch.randn(*tokens, shape[1], generator=generator).to(dtype)
        b = None if bias is None else torch.randn(shape[0], generator=generator).to(bias)
        return x, packed, b, activation

    size = "x".join(map(str, (*tokens, *shape)))
    bias_name = "nobias" if bias is None else f"bias-{str(bias)[6:]}"
    return Case(f"{size}-{pattern}-{density}-{str(dtype)[6:]}-{bias_name}-{activation}", make)


BF16 = torch.bfloat16
ACTIVATIONS = ("relu", "gelu", "gelu_tanh", "silu")
#: one of each way to read x, and the edges of what is taken
PATTERNS = ("block:16x16", "block:32x32", "block:16x1", "2:4v16", "2:4")
OTHERS = ("block:64x64", "block:48x5", "block:16x2", "block:32x12", "1:4v16", "3:7v16", "2:32v16")
CASES = [
    *[_case((t,), (40, 100), p) for p in PATTERNS for t in (*range(1, 19), 33, 64, 70)],
    *[_case((t,), (70, 90), p) for p in OTHERS for t in (1, 3, 8, 17)],
    *[_case((7,), (33, 61), p, activation=a) for p in PATTERNS for a in ACTIVATIONS],
    *[_case((t,), (33, 61), p, dtype=BF16, bias=BF16) for p in PATTERNS for t in (1, 6)],
    *[_case((5,), (19, 2309), p, bias=None) for p in PATTERNS],  # strips beyond one gathering
    *[_case((2, 3), (16, 64), p, bias=BF16) for p in PATTERNS],
    *[_case(t, (16, 32), p) for p in PATTERNS for t in ((), (0,), (2, 0))],
    *[_case((3,), s, p) for p in PATTERNS for s in ((0, 32), (16, 0), (1, 1), (16, 4), (17, 5))],
    *[_case((3,), (48, 64), p, density=0.0) for p in ("block:16x16", "block:16x1")],
    *[_case((11,), (16, 1024), p) for p in PATTERNS],  # rows of x a power of two apart
]
