"""select_nm_transposable: literal masks, an independent oracle, tails, opcheck."""

from __future__ import annotations

import itertools
import math

import pytest
import torch

from evoprune_kernels import ops
from evoprune_kernels.ops.select_nm_transposable.cases import CASES

PAIRS = ((0, 1), (0, 2), (1, 2), (0, 3), (1, 3), (2, 3))


def by_hand(scores: torch.Tensor) -> torch.Tensor:
    """The contract, word by word, in Python; sums in float64, so for scores that are exact in any order."""
    rows, columns = scores.shape
    mask = torch.zeros(-(-rows // 4) * 4, -(-columns // 4) * 4, dtype=torch.bool)
    padded = torch.zeros(mask.shape)
    padded[:rows, :columns] = scores.float()
    for r, c in itertools.product(range(0, rows, 4), range(0, columns, 4)):
        tile = padded[r : r + 4, c : c + 4].tolist()
        best, kept = None, None
        for pairs in itertools.product(PAIRS, repeat=4):
            places = [(i, j) for i, pair in enumerate(pairs) for j in pair]
            if any(sum(j == column for _, j in places) != 2 for column in range(4)):
                continue
            values = [-math.inf if math.isnan(tile[i][j]) else tile[i][j] for i, j in places]
            total = sum(values)
            total = -math.inf if math.isnan(total) else total
            if best is None or total > best:
                best, kept = total, places
        for i, j in kept:
            mask[r + i, c + j] = True
    return mask[:rows, :columns]


def test_literal():
    scores = torch.tensor([[5.0, 5, 5, 0], [5, 5, 5, 0], [0, 0, 9, 9], [1, 2, 3, 4]])
    expected = [[1, 1, 0, 0], [1, 1, 0, 0], [0, 0, 1, 1], [0, 0, 1, 1]]
    assert ops.select_nm_transposable(scores).int().tolist() == expected


@pytest.mark.parametrize("case", [c for c in CASES if c.name != "distinct"], ids=lambda c: c.name)
def test_matches_the_contract(case, threads):
    (scores,) = case.args()
    assert torch.equal(ops.select_nm_transposable(scores, impl="reference"), by_hand(scores))


def test_weight_and_transpose_are_2_of_4():
    mask = ops.select_nm_transposable(torch.randn(64, 48))
    for two_of_four in (mask, mask.t()):
        assert (two_of_four.unflatten(1, (-1, 4)).sum(-1) == 2).all()


@pytest.mark.parametrize("shape", [(6, 7), (5, 9), (1, 3)])
def test_the_edge_keeps_at_most_two(shape):
    mask = ops.select_nm_transposable(torch.rand(shape))
    full = torch.nn.functional.pad(mask, (0, -shape[1] % 4, 0, -shape[0] % 4))
    for two_of_four in (full, full.t()):
        assert (two_of_four.unflatten(1, (-1, 4)).sum(-1) <= 2).all()


def test_many_tiles():
    scores = torch.randint(0, 9, (4, 4 * 70_000)).float()  # more than are tried at once
    mask = ops.select_nm_transposable(scores, impl="reference")
    assert torch.equal(mask[:, -40:], ops.select_nm_transposable(scores[:, -40:]))


def test_non_contiguous():
    scores = torch.randint(0, 9, (12, 20)).float().t()
    assert torch.equal(ops.select_nm_transposable(scores), by_hand(scores))


def test_rejects_bad_scores():
    with pytest.raises(ValueError, match="got 1"):
        ops.select_nm_transposable(torch.zeros(8))


def test_opcheck():
    op = torch.ops.evoprune.select_nm_transposable.default
    torch.library.opcheck(op, (torch.randn(9, 13),))
