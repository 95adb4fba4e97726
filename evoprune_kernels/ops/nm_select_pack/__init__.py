"""``evoprune::nm_select_pack``: scores choose n of every m weights, which are packed in the same pass."""

from __future__ import annotations

import torch
from torch import Tensor

from evoprune_kernels._check import check_dim, check_dtype, check_shape
from evoprune_kernels.formats import NM, NMWeight
from evoprune_kernels.formats.base import VALUE_DTYPES
from evoprune_kernels.formats.nm import packed_sizes
from evoprune_kernels.ops._op import define
from evoprune_kernels.ops.nm_prepare_cuda.reference import tiles
from evoprune_kernels.ops.nm_select_pack.reference import nm_select_pack_reference


def _fake(weight: Tensor, scores: Tensor, n: int, m: int) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    rows, columns = weight.shape
    kept, meta_bytes = packed_sizes(n, m, columns)
    down, across = tiles(rows, columns) if (n, m) == (2, 4) else (0, 0)
    return (
        weight.new_empty(rows, kept),
        weight.new_empty(rows, meta_bytes, dtype=torch.uint8),
        weight.new_empty(down * 64, across * 32),
        weight.new_empty(down, across, 32, 4, dtype=torch.int32),
    )


OP = define(
    "nm_select_pack(Tensor weight, Tensor scores, int n, int m) -> "
    "(Tensor values, Tensor meta, Tensor cuda_values, Tensor cuda_meta)",
    reference=nm_select_pack_reference,
    fake=_fake,
)


def nm_select_pack(
    weight: Tensor, scores: Tensor, n: int, m: int, *, impl: str | None = None
) -> tuple[NMWeight, tuple[Tensor, Tensor] | None]:
    """Keep the ``n`` weights of highest score of every ``m`` and pack them, in one pass over memory on CUDA.

    ``nm_pack(weight, n, m, mask=select_nm(scores, n, m))``, and for 2:4 ``nm_prepare_cuda`` of that

    Args:
        weight: [N, K].
        scores: [N, K], any real dtype; compared as float32.
        n: kept in a group.
        m: group size, at most 32.
        impl: insist on an implementation.

    Returns:
        ``(packed, prepared)``: the weight in its canonical form and, for 2:4, the tensors of the layout ``cuda`` of
        ``nm_linear``; None for every other pattern.

    Raises:
        ValueError, TypeError: if shapes or dtypes do not fit, or n, m are out of range.

    Notes:
        Exact and deterministic; ties, NaN and -0.0 as ``select_nm`` and ``nm_pack``. Not differentiable.

    Example:
        >>> import torch
        >>> from evoprune_kernels import ops
        >>> weight = torch.tensor([[-4.0, 1.0, 2.0, 3.0]])
        >>> packed, prepared = ops.nm_select_pack(weight, weight.abs(), 2, 4)
        >>> packed.values, prepared[1].shape
        (tensor([[-4.,  3.]]), torch.Size([1, 1, 32, 4]))
    """
    pattern = NM(n, m)
    check_dim(weight, 2, "weight")
    check_dtype(weight, VALUE_DTYPES, "weight")
    shape = (weight.shape[0], weight.shape[1])
    check_shape(scores, shape, "scores")
    values, meta, *prepared = OP(weight.detach(), scores.detach(), n, m, impl=impl)
    packed = NMWeight(values, meta, n, m, shape)
    return packed, (prepared[0], prepared[1]) if pattern == NM(2, 4) else None
