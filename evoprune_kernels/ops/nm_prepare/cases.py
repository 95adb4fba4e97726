"""Inputs of ``nm_prepare`` for its tests and benchmarks: the packed tensors of ``nm_pack``'s cases."""

from __future__ import annotations

from typing import Any

import torch

from evoprune_kernels.formats import NM
from evoprune_kernels.formats.nm import pack_nm, pack_shared, repeat_rows
from evoprune_kernels.ops._op import Case
from evoprune_kernels.ops.nm_pack.cases import CASES as PACK_CASES


def _packed(case: Case) -> Case:
    def make(generator: torch.Generator) -> tuple[Any, ...]:
        weight, mask, n, m = case.make(generator)
        return *pack_nm(weight, mask, n, m), n, m, 1, weight.shape[1]

    return Case(case.name, make)


def _shared(case: Case) -> Case:
    """The same weight, of which a group of 16 rows keeps only the columns of its first row."""

    def make(generator: torch.Generator) -> tuple[Any, ...]:
        weight, mask, n, m = case.make(generator)
        mask = repeat_rows(mask[::16], 16, weight.shape[0])
        return *pack_shared(weight, mask, NM(n, m, 16)), n, m, 16, weight.shape[1]

    return Case(f"{case.name}-shared", make)


CASES = [case for each in PACK_CASES for case in (_packed(each), _shared(each))]
