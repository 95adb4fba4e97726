"""Inputs of ``nm_prepare_cuda`` for its tests and benchmarks."""

from __future__ import annotations

from typing import Any

import torch

from evoprune_kernels.formats import NMWeight
from evoprune_kernels.formats.nm import repeat_rows
from evoprune_kernels.ops._op import Case
from evoprune_kernels.ops.nm_pack.cases import random_weight


def _case(rows: int, columns: int, dtype: torch.dtype = torch.float32, shared: int = 1) -> Case:
    def make(generator: torch.Generator) -> tuple[Any, ...]:
        weight, mask = random_weight(generator, rows, columns, 2, 4)
        mask = repeat_rows(mask[::shared], shared, rows)
        eight_bit = dtype == torch.int8
        packed = NMWeight.pack(weight if eight_bit else weight.to(dtype), 2, 4, shared, mask=mask)
        packed = packed.quantize() if eight_bit else packed
        return packed.values, packed.meta, 2, 4, shared, columns

    pattern = "2of4" if shared == 1 else f"2of4v{shared}"
    return Case(f"{rows}x{columns}-{pattern}-{str(dtype)[6:]}", make)


CASES = [
    _case(64, 64),
    _case(128, 192, torch.bfloat16),
    _case(33, 61),  # tails of tiles and groups
    _case(65, 68, torch.float16),
    _case(1, 1),
    _case(70, 130, torch.int8),
    _case(9, 3, torch.int8),
    _case(40, 72, shared=16),
    _case(80, 64, torch.bfloat16, 16),
    _case(0, 8),
    _case(8, 0),
]
