"""Inputs of ``bitmask_pack`` (and of what takes a packed bitmask weight) for tests and benchmarks."""

from __future__ import annotations

import torch

from evoprune_kernels.ops._op import Case


def _random(
    rows: int, columns: int, density: float = 0.5, dtype: torch.dtype = torch.float32
) -> Case:
    def make(generator: torch.Generator) -> tuple[torch.Tensor, torch.Tensor]:
        weight = torch.randn(rows, columns, generator=generator).to(dtype)
        return weight, torch.rand(rows, columns, generator=generator) < density

    return Case(f"{rows}x{columns}-{density}-{str(dtype)[6:]}", make)


CASES = [
    _random(4, 8),
    _random(33, 61, 0.1),
    _random(5, 3, 1.0),
    _random(16, 40, 0.0),
    _random(0, 8),
    _random(8, 0),
    _random(64, 100, 0.25, torch.bfloat16),
]
