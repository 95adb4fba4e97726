"""``evoprune::block_prepare``: the canonical block tensors -> the layout that the CPU kernels read."""

from __future__ import annotations

import torch
from torch import Tensor

from evoprune_kernels.formats import BlockWeight
from evoprune_kernels.ops._op import define
from evoprune_kernels.ops.block_prepare.reference import block_prepare_reference, strip_rows


def _fake(
    values: Tensor, row_ptr: Tensor, col_idx: Tensor, out_features: int, in_features: int
) -> tuple[Tensor, Tensor, Tensor]:
    _, bn, bk = values.shape
    strip = strip_rows(int(bn))
    total = torch.library.get_ctx().new_dynamic_size()
    return (
        values.new_empty(total, bk, strip),
        row_ptr.new_empty((out_features + strip - 1) // strip + 1),
        col_idx.new_empty(total),
    )


OP = define(
    "block_prepare(Tensor values, Tensor row_ptr, Tensor col_idx, int out_features, int in_features) "
    "-> (Tensor, Tensor, Tensor)",
    reference=block_prepare_reference,
    fake=_fake,
)


def block_prepare(packed: BlockWeight, *, impl: str | None = None) -> tuple[Tensor, Tensor, Tensor]:
    """The tensors of a packed weight in the layout ``cpu`` of ``block_linear``: the same for every ISA level.

    Args:
        packed: the weight.
        impl: insist on an implementation.

    Returns:
        ``(values [entries, bk, rows], row_ptr int32 [strips + 1], col_idx int32 [entries])``: strips of
        ``gcd(bn, 16)`` rows, drawn in csrc/cpu/strips.h. A cache: never saved, not differentiable.

    Raises:
        ValueError, TypeError: if ``packed`` is not valid.

    Example:
        >>> import torch
        >>> from evoprune_kernels import ops
        >>> values, row_ptr, col_idx = ops.block_prepare(ops.block_pack(torch.eye(64), 32, 32))
        >>> values.shape, row_ptr.tolist(), col_idx.tolist()
        (torch.Size([4, 32, 16]), [0, 1, 2, 3, 4], [0, 0, 32, 32])
    """
    packed.validate()
    return OP(packed.values.detach(), packed.row_ptr, packed.col_idx, *packed.shape, impl=impl)
