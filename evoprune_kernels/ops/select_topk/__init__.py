"""``evoprune::select_topk``: scores -> mask of any positions (pattern ``unstructured``)."""

from __future__ import annotations

import torch
from torch import Tensor

from evoprune_kernels._check import check
from evoprune_kernels.ops._op import define
from evoprune_kernels.ops.select_topk.reference import select_topk_reference


def _fake(scores: Tensor, density: float) -> Tensor:
    return torch.empty_like(scores, dtype=torch.bool, memory_format=torch.contiguous_format)


OP = define(
    "select_topk(Tensor scores, float density) -> Tensor",
    reference=select_topk_reference,
    fake=_fake,
)


def select_topk(scores: Tensor, density: float, *, impl: str | None = None) -> Tensor:
    """Keep the highest scores of the whole tensor, exactly ``round(density * numel)`` of them.

    ``mask[i] = rank of scores[i] among all entries < round(density * numel)``

    Args:
        scores: any shape, any real dtype; compared as float32.
        density: fraction of the entries that is kept, 0-1. Half a unit rounds to even, as ``round`` does.
        impl: insist on an implementation (``"cpu"`` or ``"reference"``).

    Returns:
        bool mask of the shape of ``scores``.

    Raises:
        ValueError: if ``density`` is outside 0-1 or NaN.

    Notes:
        Exact and deterministic. Ties: the lowest flat index wins. NaN ranks below every number, -inf included.

    Source:
        Han et al., "Learning both Weights and Connections for Efficient Neural Networks", NeurIPS 2015.

    Example:
        >>> import torch
        >>> from evoprune_kernels import ops
        >>> ops.select_topk(torch.tensor([[0.1, 0.9], [0.9, 0.9]]), 0.5)
        tensor([[False,  True],
                [ True, False]])
    """
    check(0.0 <= density <= 1.0, f"expected 0 <= density <= 1, got density={density}")
    return OP(scores, density, impl=impl)
