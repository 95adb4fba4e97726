"""``evoprune::nm_prepare``: the canonical nm tensors -> the layout that the CPU kernels read."""

from __future__ import annotations

import torch
from torch import Tensor

from evoprune_kernels.formats import NMWeight
from evoprune_kernels.ops._op import define
from evoprune_kernels.ops.nm_pack import check_packed
from evoprune_kernels.ops.nm_prepare.reference import (
    TILE,
    index_dtype,
    nm_prepare_reference,
    prepared_sizes,
)


def _fake(
    values: Tensor, meta: Tensor, n: int, m: int, shared: int, in_features: int
) -> tuple[Tensor, Tensor]:
    tiles, slots, words = prepared_sizes(values.shape[0], n, m, in_features)
    if shared == TILE:
        kept = values.shape[1]
        columns = meta.new_empty(tiles, kept, dtype=index_dtype(in_features, m))
        return values.new_empty(tiles, kept, TILE), columns
    return (
        values.new_empty(tiles, slots, TILE),
        values.new_empty(tiles, words, TILE, dtype=torch.int32),
    )


OP = define(
    "nm_prepare(Tensor values, Tensor meta, int n, int m, int shared, int in_features) -> (Tensor, Tensor)",
    reference=nm_prepare_reference,
    fake=_fake,
)


def nm_prepare(packed: NMWeight, *, impl: str | None = None) -> tuple[Tensor, Tensor]:
    """The tensors of a packed weight in the layout ``cpu`` of ``nm_linear``: the same for every ISA level.

    Args:
        packed: the weight, fp32 or bf16 for the C++ kernels.
        impl: insist on an implementation.

    Returns:
        ``(values [tiles, slots, 16], meta int32 [tiles, words, 16])``: tiles of 16 rows, drawn in
        csrc/core/nm_layout.h; where 16 rows share their mask, meta holds the columns themselves, int16 (read as
        unsigned) or int32 [tiles, slots]. A cache: never saved, not differentiable.

    Raises:
        ValueError: if the tensors of ``packed`` do not have the shapes of its pattern.
        ValueError, RuntimeError: if an index is not below m (reference, C++).

    Example:
        >>> import torch
        >>> from evoprune_kernels import ops
        >>> values, meta = ops.nm_prepare(ops.nm_pack(torch.eye(4), 2, 4))
        >>> values.shape, meta.shape
        (torch.Size([1, 16, 16]), torch.Size([1, 1, 16]))
    """
    check_packed(packed)
    numbers = (*packed.pattern.arguments(), packed.shape[1])
    return OP(packed.values.detach(), packed.meta, *numbers, impl=impl)
