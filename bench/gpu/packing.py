"""Packing on the GPU: dense weight -> the 2:4 tensors, against the reference and torch's own compressors."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from bench.gpu.compare import OURS, REFERENCE, Call, Contender, Problem, exact, forced
from evoprune_kernels import ops
from evoprune_kernels.ops._op import OPS, Op

SHAPES = ((768, 3072), (4096, 4096), (11008, 4096))
DTYPES = (torch.bfloat16, torch.float32)
WAITS = "ours waits for the device, which says whether the input is valid"


def problems(device: str, quick: bool) -> list[Problem]:
    """``nm_pack``, ``nm_select_pack`` and ``nm_prepare_cuda`` for every shape and dtype."""
    shapes = ((64, 128),) if quick else SHAPES
    dtypes = DTYPES[:1] if quick else DTYPES
    return [
        make(device, shape, dtype)
        for shape in shapes
        for dtype in dtypes
        for make in (pack, select_pack, prepare)
    ]


def pack(device: str, shape: tuple[int, int], dtype: torch.dtype) -> Problem:
    """Weight and mask -> values and metadata; waits for the device, which says whether the mask fits."""

    def make(generator: torch.Generator) -> tuple[Tensor, Tensor]:
        weight = torch.randn(shape, generator=generator).to(dtype)
        return weight, ops.select_nm(weight.abs(), 2, 4)

    contenders = {
        **_ours(OPS["nm_pack"], (2, 4), device),
        "torch CUTLASS": Contender(_cutlass, wrong_cutlass),
        "torch cuSPARSELt": Contender(_cusparselt, wrong_cusparselt),
    }
    count = shape[0] * shape[1]
    moved = count * (dtype.itemsize + 1) + _packed(count, dtype)
    return Problem("nm_pack", _size(shape, dtype), make, contenders, moved, waits=WAITS)


def select_pack(device: str, shape: tuple[int, int], dtype: torch.dtype) -> Problem:
    """Weight and scores -> canonical and prepared tensors, in one pass."""

    def make(generator: torch.Generator) -> tuple[Tensor, Tensor]:
        weight = torch.randn(shape, generator=generator).to(dtype)
        return weight, weight.abs()

    count = shape[0] * shape[1]
    moved = 2 * count * dtype.itemsize + 2 * _packed(count, dtype)
    contenders = _ours(OPS["nm_select_pack"], (2, 4), device)
    return Problem("nm_select_pack", _size(shape, dtype), make, contenders, moved)


def prepare(device: str, shape: tuple[int, int], dtype: torch.dtype) -> Problem:
    """Canonical tensors -> the layout of ``nm_linear``; waits for the device, which checks the indices."""

    def make(generator: torch.Generator) -> tuple[Tensor, Tensor]:
        weight = torch.randn(shape, generator=generator).to(dtype)
        packed = ops.nm_pack(weight, 2, 4, ops.select_nm(weight.abs(), 2, 4))
        return packed.values, packed.meta

    moved = 2 * _packed(shape[0] * shape[1], dtype)
    contenders = _ours(OPS["nm_prepare_cuda"], (2, 4, 1, shape[1]), device)
    return Problem("nm_prepare_cuda", _size(shape, dtype), make, contenders, moved, waits=WAITS)


def _size(shape: tuple[int, int], dtype: torch.dtype) -> str:
    return f"{shape[0]}x{shape[1]} {str(dtype)[6:]}"


def _packed(count: int, dtype: torch.dtype) -> int:
    """Bytes of a 2:4 weight of ``count`` entries: half of the values, 4 bits of metadata for each group of four."""
    return count // 2 * dtype.itemsize + count // 8


def _ours(op: Op, numbers: tuple[int, ...], device: str) -> dict[str, Contender]:
    def bound(impl: str | None) -> Callable[..., Call]:
        return lambda *tensors: lambda: op(*tensors, *numbers, impl=impl)

    same = exact(lambda *tensors: op.reference(*tensors, *numbers))
    return {
        REFERENCE: Contender(bound(REFERENCE), same),
        OURS: Contender(bound(forced(device)), same),
    }


def _cutlass(weight: Tensor, mask: Tensor) -> Call:
    masked = weight * mask
    kind = torch.sparse.SparseSemiStructuredTensorCUTLASS
    return lambda: kind.from_dense(masked)


def wrong_cutlass(packed: Any, weight: Tensor, mask: Tensor) -> str | None:
    """Whether a compressed tensor is another weight."""
    return _other(packed.to_dense(), weight * mask)


def _cusparselt(weight: Tensor, mask: Tensor) -> Call:
    masked = weight * mask
    return lambda: torch._cslt_compress(masked)


def wrong_cusparselt(packed: Tensor, weight: Tensor, mask: Tensor) -> str | None:
    """Whether the product with the identity is another weight."""
    identity = torch.eye(weight.shape[1], dtype=weight.dtype, device=weight.device)
    return _other(torch._cslt_sparse_mm(packed, identity), weight * mask)


def _other(dense: Tensor, expected: Tensor) -> str | None:
    different = int((dense != expected).sum())
    return f"differs in {different} of {expected.numel()} entries" if different else None
