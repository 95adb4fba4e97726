"""Inputs of ``gather_channels`` and ``scatter_channels`` for their tests and benchmarks.

``CASES`` are ``(x, index)``; ``SCATTER_CASES`` are ``(x, index, channels)``, the way back of each.
"""

from __future__ import annotations

import torch
from torch import Tensor

from evoprune_kernels.ops._op import Case

F32, F16, BF16, F64 = torch.float32, torch.float16, torch.bfloat16, torch.float64


def _random(
    *shape: int,
    k: int,
    dtype: torch.dtype = F32,
    channels_last: bool = False,
    repeats: bool = False,
) -> tuple[Case, Case]:
    """``k`` channels out of ``shape[1]``: ascending, or drawn with repeats in any order."""

    def activation(generator: torch.Generator, channels: int) -> Tensor:
        x = torch.randn((shape[0], channels, *shape[2:]), generator=generator).to(dtype)
        return x.contiguous(memory_format=torch.channels_last) if channels_last else x

    def index(generator: torch.Generator) -> Tensor:
        if repeats:
            return torch.randint(0, shape[1], (k,), generator=generator)
        return torch.randperm(shape[1], generator=generator)[:k].sort().values

    name = "x".join(map(str, shape)) + f"-{k}-{str(dtype)[6:]}"
    name += "-channels-last" * channels_last + "-repeats" * repeats
    return (
        Case(name, lambda g: (activation(g, shape[1]), index(g))),
        Case(name, lambda g: (activation(g, k), index(g), shape[1])),
    )


PAIRS = [
    _random(2, 3, 7, 7, k=2),  # planes that start anywhere in a 16-byte vector
    _random(3, 20, 7, 7, k=11, dtype=F16),
    _random(2, 16, 14, 14, k=8, dtype=BF16),
    _random(1, 5, 65, 64, k=3),
    _random(2, 6, 9, 11, k=4, dtype=F64),
    _random(2, 6, 5, 5, k=6),  # every channel
    _random(2, 24, 5, 5, k=13, channels_last=True),
    _random(3, 10, 3, 5, k=7, dtype=F16, channels_last=True),  # rows that start anywhere
    _random(2, 64, 4, 4, k=33, dtype=BF16, channels_last=True),
    _random(2, 300, 2, 3, k=130, channels_last=True),
    _random(5, 33, k=20),  # the activations of a linear layer
    _random(4, 40, k=1, dtype=BF16),
    _random(2, 6, 9, k=3, dtype=F16),
    _random(2, 4, 2, 3, 2, k=3),
    _random(2, 5, 3, 3, k=9, repeats=True),
    _random(2, 7, 3, 3, k=5, channels_last=True, repeats=True),
    _random(1, 4, 6, 6, k=4, dtype=BF16, repeats=True),
    _random(1, 1, 1, 1, k=1),
    _random(0, 3, 2, 2, k=2),
    _random(2, 3, 0, 2, k=2),
    _random(2, 3, 2, 2, k=0),
    _random(2, 3, 2, 2, k=0, channels_last=True),
    _random(2, 0, 2, 2, k=0),
]
CASES = [gather for gather, _ in PAIRS]
SCATTER_CASES = [scatter for _, scatter in PAIRS]
