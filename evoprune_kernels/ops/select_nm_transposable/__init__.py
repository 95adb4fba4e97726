"""``evoprune::select_nm_transposable``: scores -> mask that is 2:4 along rows and along columns."""

from __future__ import annotations

import torch
from torch import Tensor

from evoprune_kernels._check import check_dim
from evoprune_kernels.ops._op import define
from evoprune_kernels.ops.select_nm_transposable.reference import select_nm_transposable_reference


def _fake(scores: Tensor) -> Tensor:
    return scores.new_empty(scores.shape, dtype=torch.bool)


OP = define(
    "select_nm_transposable(Tensor scores) -> Tensor",
    reference=select_nm_transposable_reference,
    fake=_fake,
)


def select_nm_transposable(scores: Tensor, *, impl: str | None = None) -> Tensor:
    """Keep two of every four along rows and along columns: weight and transpose are both 2:4.

    ``mask[tile] = argmax over the 90 valid 4 x 4 patterns of sum(scores[tile] * pattern)``

    Args:
        scores: [rows, columns], any real dtype; compared as float32.
        impl: insist on an implementation (``"cpu"`` or ``"reference"``).

    Returns:
        bool mask [rows, columns]; every 4 x 4 tile has two in each row and two in each column. A tile that is cut off
        by the edge is completed with scores of 0, and the mask cut: it has at most two in a row and in a column.

    Raises:
        ValueError: if ``scores`` is not 2-D.

    Notes:
        Exact and deterministic: all patterns are tried. A sum is ``(row 0 + row 1) + (row 2 + row 3)`` in float32, a
        row ``left + right``. Ties: the lowest pattern wins, in ascending order of the choices of rows 0 to 3, of
        columns 01, 02, 12, 03, 13, 23. NaN counts as -inf, and so does a sum of +inf and -inf.

    Source:
        Hubara et al., "Accelerated Sparse Neural Training: A Provable and Efficient Method to Find N:M Transposable
        Masks", NeurIPS 2021; Hu et al., "Accelerating Transformer Pre-training with 2:4 Sparsity", ICML 2024
        (arXiv 2404.01847).

    Example:
        >>> import torch
        >>> from evoprune_kernels import ops
        >>> scores = torch.tensor([[1.0, 9, 8, 0], [7, 0, 1, 9], [9, 1, 0, 8], [0, 7, 9, 1]])
        >>> ops.select_nm_transposable(scores).int()
        tensor([[0, 1, 1, 0],
                [1, 0, 0, 1],
                [1, 0, 0, 1],
                [0, 1, 1, 0]], dtype=torch.int32)
    """
    check_dim(scores, 2, "scores")
    return OP(scores, impl=impl)
