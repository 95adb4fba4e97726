"""``evoprune::bitmask_pack`` and ``bitmask_unpack``: a weight and its mask <-> the ``bitmask`` format."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from evoprune_kernels.formats import BitmaskWeight
from evoprune_kernels.formats.base import kept_mask
from evoprune_kernels.formats.bitmask import unpack_bits
from evoprune_kernels.ops._op import define
from evoprune_kernels.ops.bitmask_pack.reference import (
    bitmask_pack_reference,
    bitmask_unpack_reference,
)


def kept_positions(bits: Tensor, in_features: int, count: int) -> Tensor:
    """Flat position of every kept entry: int64 [count]."""
    flat = unpack_bits(bits, in_features).reshape(-1)
    return torch.nonzero_static(flat, size=count).squeeze(1)


def _pack_fake(weight: Tensor, mask: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    count = torch.library.get_ctx().new_dynamic_size()
    rows, columns = weight.shape
    return (
        weight.new_empty(count),
        weight.new_empty(rows, (columns + 7) // 8, dtype=torch.uint8),
        weight.new_empty(rows + 1, dtype=torch.int32),
    )


def _unpack_fake(values: Tensor, bits: Tensor, row_ptr: Tensor, in_features: int) -> Tensor:
    return values.new_empty(bits.shape[0], in_features)


def _pack_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
    weight, _ = inputs
    _, bits, row_ptr = output
    ctx.save_for_backward(bits, row_ptr)
    ctx.in_features = weight.shape[1]
    ctx.mark_non_differentiable(bits, row_ptr)


def _pack_backward(ctx: Any, grad: Tensor, *_: Any) -> tuple[Tensor, None]:
    bits, row_ptr = ctx.saved_tensors
    return bitmask_unpack_reference(grad, bits, row_ptr, ctx.in_features), None


def _unpack_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    values, bits, _, in_features = inputs
    ctx.save_for_backward(bits)
    ctx.in_features, ctx.count = in_features, values.shape[0]


def _unpack_backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None, None, None]:
    (bits,) = ctx.saved_tensors
    kept = kept_positions(bits, ctx.in_features, ctx.count)
    return grad.reshape(-1)[kept], None, None, None


PACK = define(
    "bitmask_pack(Tensor weight, Tensor mask) -> (Tensor, Tensor, Tensor)",
    reference=bitmask_pack_reference,
    fake=_pack_fake,
    setup_context=_pack_context,
    backward=_pack_backward,
)
UNPACK = define(
    "bitmask_unpack(Tensor values, Tensor bits, Tensor row_ptr, int in_features) -> Tensor",
    reference=bitmask_unpack_reference,
    fake=_unpack_fake,
    setup_context=_unpack_context,
    backward=_unpack_backward,
)


def bitmask_pack(
    weight: Tensor, mask: Tensor | None = None, *, impl: str | None = None
) -> BitmaskWeight:
    """Pack a dense weight with any mask; differentiable in ``weight``.

    ``values = weight[mask]``, row by row

    Args:
        weight: [N, K], floating point.
        mask: bool [N, K], True = keep; None keeps ``weight != 0``.
        impl: insist on an implementation.

    Returns:
        BitmaskWeight.

    Raises:
        ValueError, TypeError: if weight and mask do not fit.

    Notes:
        Exact. -0.0 is stored as +0.0.

    Source:
        ``formats/bitmask.py``.

    Example:
        >>> import torch
        >>> from evoprune_kernels import ops
        >>> ops.bitmask_pack(torch.tensor([[0.0, 0.0, 5.0, 6.0]])).bits.tolist()
        [[12]]
    """
    values, bits, row_ptr = PACK(weight, kept_mask(weight, mask), impl=impl)
    return BitmaskWeight(values, bits, row_ptr, (weight.shape[0], weight.shape[1]))


def bitmask_unpack(packed: BitmaskWeight, *, impl: str | None = None) -> Tensor:
    """The dense weight of a packed one; differentiable in its values.

    ``weight[mask] = values``, +0.0 elsewhere

    Args:
        packed: a BitmaskWeight.
        impl: insist on an implementation.

    Returns:
        weight [N, K] of the dtype of the values.

    Raises:
        ValueError, TypeError: if the packed tensors are not valid.

    Notes:
        Exact.

    Source:
        ``formats/bitmask.py``.

    Example:
        >>> import torch
        >>> from evoprune_kernels import ops
        >>> ops.bitmask_unpack(ops.bitmask_pack(torch.tensor([[0.0, 0.0, 5.0, 6.0]])))
        tensor([[0., 0., 5., 6.]])
    """
    packed.validate()
    return UNPACK(packed.float_values(), packed.bits, packed.row_ptr, packed.shape[1], impl=impl)
