"""``evoprune::bitmask_prepare``: the canonical bitmask tensors -> the layout that the CPU kernels read."""

from __future__ import annotations

from torch import Tensor

from evoprune_kernels.formats import BitmaskWeight
from evoprune_kernels.ops._op import define
from evoprune_kernels.ops.bitmask_prepare.reference import bitmask_prepare_reference, index_dtype


def _fake(
    values: Tensor, bits: Tensor, row_ptr: Tensor, in_features: int
) -> tuple[Tensor, Tensor, Tensor]:
    columns = values.new_empty(values.shape, dtype=index_dtype(in_features))
    return values.new_empty(values.shape), columns, row_ptr.new_empty(row_ptr.shape)


OP = define(
    "bitmask_prepare(Tensor values, Tensor bits, Tensor row_ptr, int in_features) -> (Tensor, Tensor, Tensor)",
    reference=bitmask_prepare_reference,
    fake=_fake,
)


def bitmask_prepare(
    packed: BitmaskWeight, *, impl: str | None = None
) -> tuple[Tensor, Tensor, Tensor]:
    """The tensors of a packed weight in the layout ``cpu`` of ``bitmask_linear``: the same for every ISA level.

    Args:
        packed: the weight.
        impl: insist on an implementation.

    Returns:
        ``(values [nnz], columns int16 [nnz], row_ptr int32 [N + 1])``: the column of every value, 16 bits read as
        unsigned (int32 beyond 65536 columns). A cache: never saved, not differentiable.

    Raises:
        ValueError, TypeError: if ``packed`` is not valid.

    Example:
        >>> import torch
        >>> from evoprune_kernels import ops
        >>> ops.bitmask_prepare(ops.bitmask_pack(torch.tensor([[0.0, 5.0, 0.0, 6.0]])))[1].tolist()
        [1, 3]
    """
    packed.validate()
    in_features = packed.shape[1]
    return OP(packed.values.detach(), packed.bits, packed.row_ptr, in_features, impl=impl)
