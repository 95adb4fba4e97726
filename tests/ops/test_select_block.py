"""select_block: literal masks, an independent oracle, tails, opcheck."""

from __future__ import annotations

import math

import pytest
import torch

from evoprune_kernels import ops
from evoprune_kernels.ops.select_block.cases import CASES


def by_hand(scores: torch.Tensor, bn: int, bk: int, density: float) -> torch.Tensor:
    """The contract, word by word, in Python."""
    rows, columns = scores.shape
    totals = []
    for r in range(0, rows, bn):
        for c in range(0, columns, bk):
            block = scores[r : r + bn, c : c + bk].float().reshape(-1).tolist()
            totals.append((sum(block), r, c))
    totals.sort(key=lambda t: (math.isnan(t[0]), 0 if math.isnan(t[0]) else -t[0]))
    mask = torch.zeros(scores.shape, dtype=torch.bool)
    for _, r, c in totals[: round(density * len(totals))]:
        mask[r : r + bn, c : c + bk] = True
    return mask


def test_literal():
    scores = torch.tensor([[1.0, 1, 3, 0, 5], [1, 1, 0, 0, 0], [0, 0, 0, 0, 9]])
    expected = [[1, 1, 0, 0, 1], [1, 1, 0, 0, 1], [0, 0, 0, 0, 1]]
    assert ops.select_block(scores, 2, 2, 0.5).int().tolist() == expected


@pytest.mark.parametrize("case", CASES, ids=lambda c: c.name)
def test_matches_the_contract(case, threads):
    args = case.args()
    assert torch.equal(ops.select_block(*args, impl="reference"), by_hand(*args))


def test_non_contiguous():
    scores = torch.randint(0, 9, (12, 20)).float().t()
    assert torch.equal(ops.select_block(scores, 4, 4, 0.3), by_hand(scores, 4, 4, 0.3))


@pytest.mark.parametrize(
    "bn, bk, density", [(0, 4, 0.5), (4, -1, 0.5), (4, 4, 1.1), (4, 4, float("nan"))]
)
def test_rejects_bad_arguments(bn, bk, density):
    with pytest.raises(ValueError, match="got"):
        ops.select_block(torch.zeros(8, 8), bn, bk, density)


def test_opcheck():
    torch.library.opcheck(torch.ops.evoprune.select_block.default, (torch.randn(9, 13), 4, 4, 0.5))
