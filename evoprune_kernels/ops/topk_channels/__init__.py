"""``evoprune::topk_channels``: scores -> which k channels are kept; ``topk_abs_channels`` scores them too."""

from __future__ import annotations

import torch
from torch import Tensor

from evoprune_kernels._check import check
from evoprune_kernels.ops._channels import check_channels
from evoprune_kernels.ops._op import define
from evoprune_kernels.ops.topk_channels.reference import (
    topk_abs_channels_reference,
    topk_channels_reference,
)


def _fake(scores: Tensor, k: int) -> Tensor:
    return scores.new_empty(*scores.shape[:-1], k, dtype=torch.int64)


OP = define(
    "topk_channels(Tensor scores, int k) -> Tensor",
    reference=topk_channels_reference,
    fake=_fake,
)


def _fake_abs(x: Tensor, k: int) -> Tensor:
    return x.new_empty(k, dtype=torch.int64)


ABS = define(
    "topk_abs_channels(Tensor x, int k) -> Tensor",
    reference=topk_abs_channels_reference,
    fake=_fake_abs,
)


def topk_channels(scores: Tensor, k: int, *, impl: str | None = None) -> Tensor:
    """The indices of the ``k`` highest scores, ascending.

    ``{c : rank of scores[c] among its row < k}``, in ascending order

    Args:
        scores: [C], or [B, C] for a choice of each sample; any real dtype, compared as float32.
        k: how many channels are kept, 0 to C.
        impl: insist on an implementation.

    Returns:
        int64 [k] or [B, k].

    Raises:
        ValueError: if ``scores`` has other dimensions, or not ``0 <= k <= C``.

    Notes:
        Exact and deterministic, where ``torch.topk`` leaves ties open. Ties: the lowest index wins; -0.0 equals +0.0;
        NaN ranks below every number, -inf included. The CUDA kernel takes as many channels as fit into the shared
        memory of a block (40000 on an A100).

    Example:
        >>> import torch
        >>> from evoprune_kernels import ops
        >>> ops.topk_channels(torch.tensor([0.1, 0.9, 0.9, 0.9]), 2)
        tensor([1, 2])
    """
    check(
        scores.dim() in (1, 2),
        f"expected scores of 1 or 2 dimensions, got {scores.dim()} (shape {tuple(scores.shape)})",
    )
    check(0 <= k <= scores.shape[-1], f"expected 0 <= k <= {scores.shape[-1]}, got k={k}")
    return OP(scores, k, impl=impl)


def topk_abs_channels(x: Tensor, k: int, *, impl: str | None = None) -> Tensor:
    """The indices of the ``k`` channels of ``x`` that are largest in sum, ascending: ssProp's choice among dY.

    ``topk_channels(s, k)``, ``s_c = sum |x[:, c]|``

    Args:
        x: [B, C, ...], contiguous or channels_last (anything else is copied first), a float dtype.
        k: how many channels are kept, 0 to C.
        impl: insist on an implementation.

    Returns:
        int64 [k].

    Raises:
        ValueError: if ``x`` has fewer than 2 dimensions or another dtype, or not ``0 <= k <= C``.

    Notes:
        Sums in float32, in a fixed order: two runs choose alike, and two implementations unless channels differ by
        less than the rounding of their sums. A channel with NaN counts as infinite, so that NaN is not hidden. Ties:
        the lowest index wins.

    Source:
        ssProp, arXiv 2408.12561.

    Example:
        >>> import torch
        >>> from evoprune_kernels import ops
        >>> ops.topk_abs_channels(torch.tensor([[1.0, -3.0, 2.0], [1.0, 0.0, 2.0]]), 2)
        tensor([1, 2])
    """
    check_channels(x)
    check(x.is_floating_point(), f"expected x of a float dtype, got {x.dtype}")
    check(0 <= k <= x.shape[1], f"expected 0 <= k <= {x.shape[1]}, got k={k}")
    return ABS(x, k, impl=impl)


topk_channels.OP = OP  # type: ignore[attr-defined]
topk_abs_channels.OP = ABS  # type: ignore[attr-defined]
