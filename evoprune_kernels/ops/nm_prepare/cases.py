"""Inputs of ``nm_prepare`` for its tests and benchmarks: the packed tensors of ``nm_pack``'s cases."""

from __future__ import annotations

from typing import Any

import torch

from evoprune_kernels.formats.nm import pack_nm
from evoprune_kernels.ops._op import Case
from evoprune_kernels.ops.nm_pack.cases import CASES as PACK_CASES


def _packed(case: Case) -> Case:
    def make(generator: torch.Generator) -> tuple[Any, ...]:
        weight, mask, n, m = case.make(generator)
        return *pack_nm(weight, mask, n, m), n, m, weight.shape[1]

    return Case(case.name, make)


CASES = [_packed(case) for case in PACK_CASES]
