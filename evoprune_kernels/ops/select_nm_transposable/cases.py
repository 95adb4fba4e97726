"""Inputs of ``select_nm_transposable`` for its tests and benchmarks."""

from __future__ import annotations

import torch

from evoprune_kernels.ops._op import Case


def _ties(rows: int, columns: int, dtype: torch.dtype = torch.float32) -> Case:
    def make(generator: torch.Generator) -> tuple[torch.Tensor]:
        # few distinct values, so that ties are common
        return (torch.randint(-1, 4, (rows, columns), generator=generator).to(dtype),)

    return Case(f"{rows}x{columns}-{str(dtype)[6:]}", make)


def _distinct(generator: torch.Generator) -> tuple[torch.Tensor]:
    return (torch.randn(40, 52, generator=generator),)


def _special(generator: torch.Generator) -> tuple[torch.Tensor]:
    nan, inf = float("nan"), float("inf")
    some = [[nan, 1.0, 2.0, -inf], [inf, 0.0, -0.0, 3.0], [1.0, nan, 5.0, 2.0], [4.0, inf, 0, 1.0]]
    none = [[nan, nan, nan, 1.0], [1.0, 2.0, 3.0, 4.0], [inf, -inf, 0.0, 0.0], [0.0, 1.0, 2.0, 3.0]]
    return (torch.cat([torch.tensor(some), torch.tensor(none)], 1),)


CASES = [
    _ties(4, 4),
    _ties(16, 64),
    _ties(33, 61),  # tails on both sides
    _ties(3, 2),  # smaller than a tile
    _ties(1, 9),
    _ties(0, 8),
    _ties(8, 0),
    _ties(24, 20, torch.bfloat16),
    _ties(24, 22, torch.float16),
    Case("distinct", _distinct),
    Case("nan-and-inf", _special),
]
