"""Row filter: literal masks and a Python loop."""

from __future__ import annotations

from fractions import Fraction

import pytest
import torch

from evoprune_kernels.selection import drop_sparse_rows


def by_hand(mask: torch.Tensor, threshold: Fraction) -> torch.Tensor:
    rows = []
    for row in mask.flatten(1).tolist():
        zeros = Fraction(row.count(False), len(row))
        rows.append([False] * len(row) if threshold < zeros < 1 else row)
    return torch.tensor(rows, dtype=torch.bool).view(mask.shape)


@pytest.mark.parametrize("shape", [(5, 4), (9, 8), (6, 2, 2, 2), (7, 1)])
@pytest.mark.parametrize("quarters", range(5))
def test_against_a_loop(shape, quarters):
    mask = torch.rand(shape) < torch.linspace(0, 1, shape[0]).view(-1, *[1] * (len(shape) - 1))
    before = mask.clone()
    result = drop_sparse_rows(mask, quarters / 4)
    assert torch.equal(result, by_hand(mask, Fraction(quarters, 4)))
    assert torch.equal(mask, before)


def test_a_row_at_the_threshold_stays():
    mask = torch.tensor([[1, 0, 0, 0], [1, 1, 0, 0]]).bool()
    assert torch.equal(drop_sparse_rows(mask, 0.75), mask)
    assert drop_sparse_rows(mask, 0.7499).sum(1).tolist() == [0, 2]


def test_one_changes_nothing_and_zero_leaves_full_rows():
    mask = torch.rand(20, 7) < 0.3
    mask[:, 2] = False
    mask[3] = True
    assert torch.equal(drop_sparse_rows(mask, 1.0), mask)
    assert drop_sparse_rows(mask, 0.0).sum(1).tolist() == [7 if i == 3 else 0 for i in range(20)]


def test_vectors_and_empty():
    assert drop_sparse_rows(torch.tensor([True, False]), 0.0).tolist() == [True, False]
    for shape in [(0, 3), (3, 0)]:
        assert drop_sparse_rows(torch.ones(shape, dtype=torch.bool), 0.5).shape == shape


def test_rejects():
    with pytest.raises(TypeError, match=r"mask of dtype torch.bool, got torch.float32"):
        drop_sparse_rows(torch.ones(2, 2), 0.5)
    for threshold in (-0.1, 1.1, float("nan")):
        with pytest.raises(ValueError, match=f"threshold <= 1, got {threshold}"):
            drop_sparse_rows(torch.ones(2, 2).bool(), threshold)
    with pytest.raises(ValueError, match=r"rows, got shape \(\)"):
        drop_sparse_rows(torch.tensor(True), 0.5)
