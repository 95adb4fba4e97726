"""topk_channels: literal indices, an independent oracle, bad input, opcheck."""

from __future__ import annotations

import pytest
import torch

from evoprune_kernels import ops
from evoprune_kernels.ops.topk_channels.cases import CASES


def by_hand(scores: torch.Tensor, k: int) -> torch.Tensor:
    """The contract, word by word, in Python."""
    rows = []
    for row in torch.atleast_2d(scores.float()).tolist():
        order = sorted(
            range(len(row)), key=lambda i: (row[i] != row[i], -row[i] if row[i] == row[i] else 0)
        )
        rows.append(sorted(order[:k]))
    return torch.tensor(rows, dtype=torch.int64).reshape(*scores.shape[:-1], k)


def test_literal():
    scores = torch.tensor([[0.5, 2.0, 2.0, float("nan")], [-0.0, 0.0, -1.0, -float("inf")]])
    assert ops.topk_channels(scores, 1).tolist() == [[1], [0]]
    assert ops.topk_channels(scores, 2).tolist() == [[1, 2], [0, 1]]
    assert ops.topk_channels(scores[0], 3).tolist() == [0, 1, 2]


@pytest.mark.parametrize("case", CASES, ids=lambda c: c.name)
def test_matches_the_contract(case):
    scores, k = case.args()
    assert torch.equal(ops.topk_channels(scores, k), by_hand(scores, k))


def test_non_contiguous():
    scores = torch.randn(12, 20).t()
    assert torch.equal(ops.topk_channels(scores, 5), by_hand(scores, 5))


@pytest.mark.parametrize("k", [-1, 9])
def test_rejects_bad_k(k):
    with pytest.raises(ValueError, match=f"expected 0 <= k <= 8, got k={k}"):
        ops.topk_channels(torch.zeros(2, 8), k)


def test_rejects_bad_shape():
    with pytest.raises(ValueError, match="1 or 2 dimensions, got 3"):
        ops.topk_channels(torch.zeros(2, 8, 2), 1)


def test_opcheck():
    torch.library.opcheck(torch.ops.evoprune.topk_channels.default, (torch.randn(5, 13), 4))
