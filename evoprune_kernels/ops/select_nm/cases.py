"""Inputs of ``select_nm`` for its tests and benchmarks."""

from __future__ import annotations

import torch

from evoprune_kernels.ops._op import Case


def _random(rows: int, columns: int, n: int, m: int, dtype: torch.dtype = torch.float32) -> Case:
    def make(generator: torch.Generator) -> tuple[torch.Tensor, int, int]:
        # few distinct values, so that ties are common
        scores = torch.randint(0, 5, (rows, columns), generator=generator).to(dtype)
        return scores, n, m

    return Case(f"{rows}x{columns}-{n}of{m}-{str(dtype)[6:]}", make)


def _special(generator: torch.Generator) -> tuple[torch.Tensor, int, int]:
    nan, inf = float("nan"), float("inf")
    return torch.tensor([[nan, 1.0, nan, -inf], [inf, inf, inf, nan], [nan] * 4]), 2, 4


CASES = [
    _random(1, 4, 2, 4),
    _random(7, 64, 2, 4),
    _random(33, 61, 2, 4),  # tail group of one
    _random(5, 3, 2, 4),  # shorter than a group
    _random(4, 96, 1, 4),
    _random(4, 80, 3, 5),  # m that is no power of two
    _random(3, 70, 4, 32),
    _random(9, 40, 4, 4),  # keeps all
    _random(0, 8, 2, 4),
    _random(8, 0, 2, 4),
    _random(6, 48, 2, 4, torch.bfloat16),
    Case("nan-and-inf", _special),
]
