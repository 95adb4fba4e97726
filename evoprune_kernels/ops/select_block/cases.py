"""Inputs of ``select_block`` for its tests and benchmarks."""

from __future__ import annotations

import torch

from evoprune_kernels.ops._op import Case


def _random(
    rows: int,
    columns: int,
    bn: int,
    bk: int,
    density: float = 0.5,
    dtype: torch.dtype = torch.float32,
) -> Case:
    def make(generator: torch.Generator) -> tuple[torch.Tensor, int, int, float]:
        # small integers: sums are exact and ties common
        scores = torch.randint(0, 3, (rows, columns), generator=generator).to(dtype)
        return scores, bn, bk, density

    return Case(f"{rows}x{columns}-{bn}x{bk}-{density}-{str(dtype)[6:]}", make)


def _special(generator: torch.Generator) -> tuple[torch.Tensor, int, int, float]:
    nan, inf = float("nan"), float("inf")
    return torch.tensor([[nan, 9.0, -inf, 1.0, 0.0, 0.0, inf, 1.0]]), 1, 2, 0.75


CASES = [
    _random(4, 4, 2, 2),
    _random(33, 61, 16, 16),  # tails on both sides
    _random(64, 64, 16, 1, 0.25),
    _random(20, 48, 1, 16, 0.1),
    _random(7, 5, 3, 2, 0.4),
    _random(5, 3, 16, 16, 1.0),  # smaller than a block
    _random(32, 32, 8, 8, 0.0),
    _random(0, 8, 4, 4),
    _random(8, 0, 4, 4),
    _random(16, 24, 4, 4, 0.5, torch.bfloat16),
    Case("nan-and-inf", _special),
]
