"""Inputs of ``block_pack`` (and of what takes a packed block weight) for tests and benchmarks."""

from __future__ import annotations

import torch

from evoprune_kernels.ops._op import Case


def block_mask(
    rows: int, columns: int, bn: int, bk: int, density: float, generator: torch.Generator
) -> torch.Tensor:
    """A random mask of whole blocks."""
    grid = -(-rows // bn), -(-columns // bk)
    kept = torch.rand(grid, generator=generator) < density
    return kept.repeat_interleave(bn, 0).repeat_interleave(bk, 1)[:rows, :columns].contiguous()


def _random(
    rows: int,
    columns: int,
    bn: int,
    bk: int,
    density: float = 0.5,
    dtype: torch.dtype = torch.float32,
) -> Case:
    def make(generator: torch.Generator) -> tuple[torch.Tensor, torch.Tensor, int, int]:
        weight = torch.randn(rows, columns, generator=generator).to(dtype)
        return weight, block_mask(rows, columns, bn, bk, density, generator), bn, bk

    return Case(f"{rows}x{columns}-{bn}x{bk}-{density}-{str(dtype)[6:]}", make)


CASES = [
    _random(4, 6, 2, 2),
    _random(33, 61, 16, 16),
    _random(64, 64, 16, 1, 0.25),
    _random(20, 48, 1, 16, 0.1),
    _random(7, 5, 3, 2),
    _random(5, 3, 16, 16, 1.0),
    _random(32, 32, 8, 8, 0.0),
    _random(0, 8, 4, 4),
    _random(8, 0, 4, 4),
    _random(64, 128, 32, 32, 0.5, torch.bfloat16),
]
