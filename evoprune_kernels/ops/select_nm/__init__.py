"""``evoprune::select_nm``: scores -> mask of an n:m pattern."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.functional import pad

from evoprune_kernels._check import check, check_dim
from evoprune_kernels.formats import NM
from evoprune_kernels.formats.nm import repeat_rows
from evoprune_kernels.ops._op import define
from evoprune_kernels.ops.select_nm.reference import select_nm_reference

MAX_GROUP = 32


def _fake(scores: Tensor, n: int, m: int) -> Tensor:
    return scores.new_empty(scores.shape, dtype=torch.bool)


OP = define(
    "select_nm(Tensor scores, int n, int m) -> Tensor",
    reference=select_nm_reference,
    fake=_fake,
)


def sum_strips(scores: Tensor, shared: int) -> Tensor:
    """Sums of ``shared`` consecutive rows in float32: [ceil(rows/shared), columns]; ``scores`` itself for one row."""
    if shared == 1:
        return scores
    padded = pad(scores.float(), (0, 0, 0, -scores.shape[0] % shared))
    return padded.unflatten(0, (-1, shared)).sum(1)


def select_nm(
    scores: Tensor, n: int, m: int, *, shared: int = 1, impl: str | None = None
) -> Tensor:
    """Keep the ``n`` highest scores of every ``m`` consecutive entries of a row.

    ``mask[r, g*m + i] = rank of scores[r, g*m + i] within its group < n``

    Args:
        scores: [rows, columns], any real dtype; compared as float32.
        n: how many are kept in a group, 1 <= n <= m.
        m: group size, at most 32.
        shared: 16 to choose one mask for each group of 16 rows, by the sum of their scores; 1 for a mask a row.
        impl: insist on an implementation (``"cpu"`` or ``"reference"``).

    Returns:
        bool mask [rows, columns]. A last group of fewer than ``m`` entries keeps up to ``n`` as well.

    Raises:
        ValueError: if ``scores`` is not 2-D or ``n``, ``m`` or ``shared`` are out of range.

    Notes:
        Exact and deterministic. Ties: the lowest index wins. NaN ranks below every number, -inf included.

    Source:
        Zhou et al., "Learning N:M Fine-grained Structured Sparse Neural Networks From Scratch", ICLR 2021.

    Example:
        >>> import torch
        >>> from evoprune_kernels import ops
        >>> ops.select_nm(torch.tensor([[0.1, 0.9, 0.9, 0.3]]), 2, 4)
        tensor([[False,  True,  True, False]])
    """
    check_dim(scores, 2, "scores")
    check(1 <= n <= m <= MAX_GROUP, f"expected 1 <= n <= m <= {MAX_GROUP}, got n={n}, m={m}")
    NM(n, m, shared)
    mask = OP(sum_strips(scores, shared), n, m, impl=impl)
    return repeat_rows(mask, shared, scores.shape[0])
