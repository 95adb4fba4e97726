"""``evoprune::nm_pack`` and ``evoprune::nm_unpack``: dense weight and mask <-> the canonical nm tensors."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import pad

from evoprune_kernels._check import check
from evoprune_kernels.formats import NM, NMWeight
from evoprune_kernels.formats.base import kept_mask
from evoprune_kernels.formats.nm import columns_of, packed_sizes, repeat_rows
from evoprune_kernels.ops._op import define
from evoprune_kernels.ops.nm_pack.reference import nm_pack_reference, nm_unpack_reference


def gather_kept(dense: Tensor, meta: Tensor, n: int, m: int) -> Tensor:
    """The entries of ``dense`` [N, K] at the places that ``meta`` stores: [N, G*n]; 0 beyond column K."""
    columns = columns_of(meta, n, m, dense.shape[1])
    return pad(dense, (0, -dense.shape[1] % m)).gather(1, columns)


def _pack_fake(weight: Tensor, mask: Tensor, n: int, m: int) -> tuple[Tensor, Tensor]:
    kept, meta_bytes = packed_sizes(n, m, weight.shape[1])
    rows = weight.shape[0]
    return weight.new_empty(rows, kept), weight.new_empty(rows, meta_bytes, dtype=torch.uint8)


def _pack_setup(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
    _, mask, ctx.n, ctx.m = inputs
    ctx.save_for_backward(mask, output[1])
    ctx.mark_non_differentiable(output[1])


def _pack_backward(ctx: Any, grad: Tensor, _: Tensor) -> tuple[Tensor, None, None, None]:
    mask, meta = ctx.saved_tensors
    dense = UNPACK(grad.contiguous(), meta, ctx.n, ctx.m, mask.shape[1])
    return torch.where(mask, dense, torch.zeros_like(dense)), None, None, None


def _unpack_fake(values: Tensor, meta: Tensor, n: int, m: int, in_features: int) -> Tensor:
    return values.new_empty(values.shape[0], in_features)


def _unpack_setup(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    _, meta, ctx.n, ctx.m, _ = inputs
    ctx.save_for_backward(meta)


def _unpack_backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None, None, None, None]:
    (meta,) = ctx.saved_tensors
    return gather_kept(grad, meta, ctx.n, ctx.m), None, None, None, None


OP = define(
    "nm_pack(Tensor weight, Tensor mask, int n, int m) -> (Tensor, Tensor)",
    reference=nm_pack_reference,
    fake=_pack_fake,
    setup_context=_pack_setup,
    backward=_pack_backward,
)
UNPACK = define(
    "nm_unpack(Tensor values, Tensor meta, int n, int m, int in_features) -> Tensor",
    reference=nm_unpack_reference,
    fake=_unpack_fake,
    setup_context=_unpack_setup,
    backward=_unpack_backward,
)


def nm_pack(
    weight: Tensor,
    n: int,
    m: int,
    mask: Tensor | None = None,
    *,
    shared: int = 1,
    impl: str | None = None,
) -> NMWeight:
    """Pack a dense weight whose mask obeys n:m.

    ``values[r, g*n + i] = weight[r, g*m + index(r, g, i)]``

    Args:
        weight: [N, K].
        n: kept in a group.
        m: group size, at most 32.
        mask: bool [N, K], True = keep; None keeps ``weight != 0``.
        shared: 16 where groups of 16 rows keep the same columns.
        impl: insist on an implementation.

    Returns:
        the packed weight; ``values`` is differentiable in ``weight``, on the kept entries.

    Raises:
        ValueError: if shapes do not fit or n, m are out of range.
        ValueError, RuntimeError: if a group keeps more than n, with its coordinates (reference, C++).

    Notes:
        Exact and deterministic. -0.0 becomes +0.0. Layout: ``formats/nm.py``. On CUDA the call waits for the
        device, which says whether a group keeps too many; ``nm_select_pack`` has no such question.

    Example:
        >>> import torch
        >>> from evoprune_kernels import ops
        >>> ops.nm_pack(torch.tensor([[0.0, 5.0, 0.0, 6.0]]), 2, 4).values
        tensor([[5., 6.]])
    """
    pattern = NM(n, m, shared)
    mask = kept_mask(weight, mask)
    shape = (weight.shape[0], weight.shape[1])
    if shared == 1:
        values, meta = OP(weight, mask, n, m, impl=impl)
        return NMWeight(values, meta, pattern.n, pattern.m, shape)
    union = pad(mask, (0, 0, 0, -shape[0] % shared)).unflatten(0, (-1, shared)).any(1)
    _, meta = OP(union.to(weight.dtype), union, n, m, impl=impl)
    kept = torch.where(mask, weight, torch.zeros_like(weight)) + 0.0
    values = gather_kept(kept, repeat_rows(meta, shared, shape[0]), n, m)
    return NMWeight(values, meta, pattern.n, pattern.m, shape, shared)


def nm_unpack(packed: NMWeight, *, impl: str | None = None) -> Tensor:
    """The dense weight [N, K] of a packed one, +0.0 where nothing is kept; differentiable in its values.

    Args:
        packed: the weight.
        impl: insist on an implementation.

    Raises:
        ValueError: if the tensors of ``packed`` do not have the shapes of its pattern.

    Example:
        >>> import torch
        >>> from evoprune_kernels import ops
        >>> ops.nm_unpack(ops.nm_pack(torch.tensor([[0.0, 5.0, 0.0, 6.0]]), 2, 4))
        tensor([[0., 5., 0., 6.]])
    """
    check_packed(packed)
    return UNPACK(
        packed.float_values(),
        repeat_rows(packed.meta, packed.shared, packed.shape[0]),
        *(packed.n, packed.m, packed.shape[1]),
        impl=impl,
    )


def check_packed(packed: NMWeight) -> None:
    """Raise ``ValueError`` unless the tensors have the shapes of the pattern (indices: ``packed.validate()``)."""
    kept, meta_bytes = packed_sizes(packed.n, packed.m, packed.shape[1])
    rows = packed.shape[0]
    strips = -(-rows // packed.shared)
    check(
        packed.values.shape == (rows, kept) and packed.meta.shape == (strips, meta_bytes),
        f"expected values {(rows, kept)} and meta {(strips, meta_bytes)} for {packed.pattern} of {packed.shape}, "
        f"got {tuple(packed.values.shape)} and {tuple(packed.meta.shape)}",
    )
