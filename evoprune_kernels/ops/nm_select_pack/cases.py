"""Inputs of ``nm_select_pack`` for its tests and benchmarks: ``(weight, scores, n, m)``."""

from __future__ import annotations

import torch
from torch import Tensor

from evoprune_kernels.ops._op import Case


def _case(
    rows: int,
    columns: int,
    n: int = 2,
    m: int = 4,
    dtype: torch.dtype = torch.float32,
    scores: torch.dtype | None = None,
) -> Case:
    def make(generator: torch.Generator) -> tuple[Tensor, Tensor, int, int]:
        weight = torch.randn(rows, columns, generator=generator).to(dtype)
        # few distinct scores, so that ties are common
        ranks = torch.randint(0, 5, (rows, columns), generator=generator)
        return weight, ranks.to(scores or dtype), n, m

    names = [str(d)[6:] for d in (dtype, scores) if d is not None]
    return Case("-".join([f"{rows}x{columns}", f"{n}of{m}", *names]), make)


def _special(generator: torch.Generator) -> tuple[Tensor, Tensor, int, int]:
    nan, inf = float("nan"), float("inf")
    weight = torch.tensor([nan, 1.0, -0.0, -inf, inf, -0.0, 0.0, 1e-42]).repeat(3, 4)
    scores = torch.tensor([nan, 1.0, nan, -inf, inf, inf, inf, nan, *[nan] * 4]).repeat(8)
    return weight, scores.reshape(3, 32), 2, 4


CASES = [
    _case(64, 256),
    _case(64, 512, dtype=torch.bfloat16),
    _case(70, 272),  # tails of tiles and of spans
    _case(33, 80, dtype=torch.float16),
    _case(65, 528, dtype=torch.bfloat16, scores=torch.float32),
    _case(8, 32, scores=torch.bfloat16),
    _case(33, 61),  # tail of groups
    _case(5, 3, dtype=torch.bfloat16),
    _case(1, 1),
    _case(7, 64, 4, 8),
    _case(9, 40, 3, 5, torch.bfloat16),
    _case(3, 70, 4, 32, torch.float16),
    _case(4, 33, 1, 4),
    _case(0, 8),
    _case(8, 0),
    Case("nan-inf-negative-zero", _special),
]
