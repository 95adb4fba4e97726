"""Inputs of the nm ops for their tests and benchmarks."""

from __future__ import annotations

import torch

from evoprune_kernels.ops._op import Case
from evoprune_kernels.ops.select_nm.reference import select_nm_reference


def random_weight(
    generator: torch.Generator, rows: int, columns: int, n: int, m: int
) -> tuple[torch.Tensor, torch.Tensor]:
    """A weight and a mask that obeys n:m; about one kept entry in eight is dropped, so some groups are under-full."""
    weight = torch.randn(rows, columns, generator=generator)
    mask = select_nm_reference(weight.abs(), n, m)
    return weight, mask & (torch.rand(rows, columns, generator=generator) > 0.125)


def _case(rows: int, columns: int, n: int, m: int, dtype: torch.dtype = torch.float32) -> Case:
    def make(generator: torch.Generator) -> tuple[torch.Tensor, torch.Tensor, int, int]:
        weight, mask = random_weight(generator, rows, columns, n, m)
        return weight.to(dtype), mask, n, m

    return Case(f"{rows}x{columns}-{n}of{m}-{str(dtype)[6:]}", make)


def _special(generator: torch.Generator) -> tuple[torch.Tensor, torch.Tensor, int, int]:
    nan, inf = float("nan"), float("inf")
    weight = torch.tensor([[nan, 1.0, -0.0, -inf, inf], [0.0, nan, -0.0, 1e-42, -0.0]])
    mask = torch.tensor([[1, 0, 0, 1, 1], [0, 0, 1, 1, 1]], dtype=torch.bool)
    return weight, mask, 2, 4


CASES = [
    _case(16, 64, 2, 4),
    _case(33, 61, 2, 4),  # tails of rows, words and groups
    _case(1, 1, 2, 4),
    _case(5, 3, 2, 4),
    _case(4, 96, 1, 4),
    _case(17, 80, 3, 5),
    _case(7, 40, 4, 8),
    _case(6, 33, 2, 3),
    _case(3, 100, 7, 32),
    _case(9, 51, 5, 17),
    _case(20, 48, 9, 16),
    _case(9, 40, 4, 4),
    _case(5, 9, 1, 1),
    _case(0, 8, 2, 4),
    _case(8, 0, 2, 4),
    _case(18, 72, 2, 4, torch.bfloat16),
    _case(18, 72, 3, 8, torch.bfloat16),
    Case("nan-inf-negative-zero", _special),
]
