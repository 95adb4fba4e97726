"""Inputs of ``topk_channels`` for its tests and benchmarks."""

from __future__ import annotations

import torch

from evoprune_kernels.ops._op import Case


def _ties(*shape: int, k: int, dtype: torch.dtype = torch.float32) -> Case:
    def make(generator: torch.Generator) -> tuple[torch.Tensor, int]:
        # few distinct values, so that ties are common
        return torch.randint(-3, 5, shape, generator=generator).to(dtype), k

    return Case(f"{'x'.join(map(str, shape))}-{k}-{str(dtype)[6:]}", make)


def _distinct(generator: torch.Generator) -> tuple[torch.Tensor, int]:
    return torch.randn(3, 1000, generator=generator), 257


def _special(generator: torch.Generator) -> tuple[torch.Tensor, int]:
    nan, inf = float("nan"), float("inf")
    return torch.tensor([nan, -inf, nan, -0.0, 0.0, inf, -1.0, nan]), 6


def _zeros(generator: torch.Generator) -> tuple[torch.Tensor, int]:
    return torch.tensor([-0.0, 0.0, -0.0, 0.0, -1.0]), 3


CASES = [
    _ties(64, k=16),
    _ties(7, k=3),
    _ties(5, 33, k=20),
    _ties(2, 300, k=1),
    _ties(40, k=40),
    _ties(40, k=0),
    _ties(1, k=1),
    _ties(0, k=0),
    _ties(0, 8, k=4),
    _ties(3, 96, k=48, dtype=torch.bfloat16),
    _ties(2, 130, k=65, dtype=torch.float16),
    _ties(2100, k=700),
    Case("distinct", _distinct),
    Case("nan-and-inf", _special),
    Case("zeros", _zeros),
]
