"""``evoprune::select_topk_global``: scores of several tensors -> masks of any positions, ranked together."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from evoprune_kernels._check import check
from evoprune_kernels.ops._op import define
from evoprune_kernels.ops.select_topk_global.reference import select_topk_global_reference


def _fake(scores: list[Tensor], density: float) -> list[Tensor]:
    like = torch.contiguous_format
    return [torch.empty_like(s, dtype=torch.bool, memory_format=like) for s in scores]


OP = define(
    "select_topk_global(Tensor[] scores, float density) -> Tensor[]",
    reference=select_topk_global_reference,
    fake=_fake,
)


def select_topk_global(
    scores: Sequence[Tensor], density: float, *, impl: str | None = None
) -> list[Tensor]:
    """Keep the highest scores of all tensors together, exactly ``round(density * entries)`` of them.

    ``masks[t][i] = rank of scores[t][i] among the entries of all tensors < round(density * entries)``

    Args:
        scores: tensors of any shapes and real dtypes, on one device; compared as float32.
        density: fraction of all entries that is kept, 0-1. Half a unit rounds to even, as ``round`` does.
        impl: insist on an implementation (``"cpu"`` or ``"reference"``).

    Returns:
        a bool mask for each tensor, of its shape.

    Raises:
        ValueError: if ``density`` is outside 0-1 or NaN.

    Notes:
        Exact and deterministic. Ties: the lowest flat index wins, counted through the list. NaN ranks below every
        number, -inf included. On CUDA nothing is concatenated and the host does not wait for the device.

    Source:
        Han et al., "Learning both Weights and Connections for Efficient Neural Networks", NeurIPS 2015.

    Example:
        >>> import torch
        >>> from evoprune_kernels import ops
        >>> ops.select_topk_global([torch.tensor([0.1, 0.9]), torch.tensor([[0.5], [0.9]])], 0.5)
        [tensor([False,  True]), tensor([[False],
                [ True]])]
    """
    check(0.0 <= density <= 1.0, f"expected 0 <= density <= 1, got density={density}")
    if not scores:
        return []
    return OP(list(scores), density, impl=impl)
