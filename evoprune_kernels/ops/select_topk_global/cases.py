"""Inputs of ``select_topk_global`` for its tests and benchmarks."""

from __future__ import annotations

import torch

from evoprune_kernels.ops._op import Case


def _ties(
    name: str,
    *shapes: tuple[int, ...],
    density: float,
    dtypes: tuple[torch.dtype, ...] = (torch.float32,),
) -> Case:
    def make(generator: torch.Generator) -> tuple[list[torch.Tensor], float]:
        # few distinct values, so that ties are common, also across tensors
        scores = [torch.randint(-2, 4, shape, generator=generator) for shape in shapes]
        return [s.to(dtypes[i % len(dtypes)]) for i, s in enumerate(scores)], density

    return Case(name, make)


def _special(generator: torch.Generator) -> tuple[list[torch.Tensor], float]:
    nan, inf = float("nan"), float("inf")
    return [torch.tensor([nan, -inf, nan, -0.0]), torch.tensor([0.0, inf, -1.0, nan])], 0.75


_16_BIT = (torch.float16,)
_MIXED = (torch.float32, torch.bfloat16, torch.float16)

CASES = [
    _ties("one", (7, 9), density=0.5),
    _ties("several", (33, 61), (5,), (4, 5, 6), (64, 48), density=0.1),
    _ties("with-empty", (0, 8), (5, 5), (0,), (3,), density=0.4),
    _ties("all-empty", (0, 8), (0,), density=0.5),
    _ties("none-kept", (5, 5), (3,), density=0.0),
    _ties("all-kept", (5, 5), (3,), density=1.0),
    _ties("scalars", *[()] * 5, density=0.5),
    _ties("many", *[(3, i) for i in range(1, 80)], density=0.3),
    _ties("float16", (64, 48), (17, 3), density=0.25, dtypes=_16_BIT),
    _ties("mixed-dtypes", (16, 8), (17, 3), (40,), density=0.6, dtypes=_MIXED),
    Case("nan-and-inf", _special),
]
