"""Inputs of ``select_topk`` for its tests and benchmarks."""

from __future__ import annotations

import torch

from evoprune_kernels.ops._op import Case


def _ties(*shape: int, density: float, dtype: torch.dtype = torch.float32) -> Case:
    def make(generator: torch.Generator) -> tuple[torch.Tensor, float]:
        # few distinct values, so that ties are common
        return torch.randint(-2, 4, shape, generator=generator).to(dtype), density

    name = "x".join(map(str, shape)) or "scalar"
    return Case(f"{name}-{density}-{str(dtype)[6:]}", make)


def _distinct(generator: torch.Generator) -> tuple[torch.Tensor, float]:
    return torch.randn(300, 401, generator=generator), 0.1


def _special(generator: torch.Generator) -> tuple[torch.Tensor, float]:
    nan, inf = float("nan"), float("inf")
    return torch.tensor([nan, -inf, nan, -0.0, 0.0, inf, -1.0, nan]), 0.75


CASES = [
    _ties(7, 9, density=0.5),
    _ties(33, 61, density=0.1),
    _ties(40, density=0.9),
    _ties(4, 5, 6, density=0.33),
    _ties(5, 5, density=0.0),
    _ties(5, 5, density=1.0),
    _ties(0, 8, density=0.5),
    _ties(density=0.5),
    _ties(1, density=1.0),
    _ties(64, 48, density=0.25, dtype=torch.bfloat16),
    Case("distinct", _distinct),
    Case("nan-and-inf", _special),
]
