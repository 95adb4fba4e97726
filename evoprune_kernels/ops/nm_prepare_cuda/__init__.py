"""``evoprune::nm_prepare_cuda``: the canonical tensors of a 2:4 weight -> the layout that the CUDA kernels read."""

from __future__ import annotations

import torch
from torch import Tensor

from evoprune_kernels.formats import NMWeight
from evoprune_kernels.ops._op import define
from evoprune_kernels.ops.nm_pack import check_packed
from evoprune_kernels.ops.nm_prepare_cuda.reference import (
    check_pattern,
    nm_prepare_cuda_reference,
    tiles,
)


def _fake(
    values: Tensor, meta: Tensor, n: int, m: int, shared: int, in_features: int
) -> tuple[Tensor, Tensor]:
    check_pattern(n, m, shared)
    down, across = tiles(values.shape[0], in_features)
    return (
        values.new_empty(down * 64, across * 32),
        values.new_empty(down, across, 32, 4, dtype=torch.int32),
    )


OP = define(
    "nm_prepare_cuda(Tensor values, Tensor meta, int n, int m, int shared, int in_features) -> (Tensor, Tensor)",
    reference=nm_prepare_cuda_reference,
    fake=_fake,
)


def nm_prepare_cuda(packed: NMWeight, *, impl: str | None = None) -> tuple[Tensor, Tensor]:
    """The tensors of a 2:4 weight in the layout ``cuda`` of ``nm_linear``: metadata as the tensor cores take it.

    Args:
        packed: a weight of pattern 2:4 or 2:4v16.
        impl: insist on an implementation.

    Returns:
        ``(values [rows64, columns64/2], meta int32 [rows64/64, columns64/64, 32, 4])``, rows and columns padded to
        multiples of 64, drawn in csrc/core/nm_cuda_layout.h; words of int8 values are in another order than those
        of every other dtype. A cache: never saved, not differentiable.

    Raises:
        ValueError: if the pattern is another, or the tensors of ``packed`` do not have the shapes of its pattern.
        ValueError, RuntimeError: if the two indices of a group do not increase (reference, C++).

    Notes:
        Exact. Rows that share their mask are stored one by one. Padding holds the value 0 and the indices 0 and 1.
        On CUDA the call waits for the device, which says whether the indices increase.

    Example:
        >>> import torch
        >>> from evoprune_kernels import ops
        >>> values, meta = ops.nm_prepare_cuda(ops.nm_pack(torch.eye(4), 2, 4))
        >>> values.shape, meta.shape, hex(meta[0, 0, 0, 0].item())
        (torch.Size([64, 32]), torch.Size([1, 1, 32, 4]), '0x44444444')
    """
    check_packed(packed)
    numbers = (*packed.pattern.arguments(), packed.shape[1])
    return OP(packed.values.detach(), packed.meta, *numbers, impl=impl)
