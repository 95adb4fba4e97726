"""select_topk: literal masks, an independent oracle, exact counts, opcheck."""

from __future__ import annotations

import pytest
import torch

from evoprune_kernels import ops
from evoprune_kernels.ops.select_topk.cases import CASES


def by_hand(scores: torch.Tensor, density: float) -> torch.Tensor:
    """The contract, word by word, in Python."""
    flat = scores.float().reshape(-1).tolist()
    order = sorted(
        range(len(flat)), key=lambda i: (flat[i] != flat[i], -flat[i] if flat[i] == flat[i] else 0)
    )
    mask = torch.zeros(len(flat), dtype=torch.bool)
    mask[order[: round(density * len(flat))]] = True
    return mask.view(scores.shape)


def test_literal():
    scores = torch.tensor([[0.5, 2.0, 2.0], [-0.0, 0.0, 2.0]])
    assert ops.select_topk(scores, 1 / 3).int().tolist() == [[0, 1, 1], [0, 0, 0]]
    assert ops.select_topk(scores, 5 / 6).int().tolist() == [[1, 1, 1], [1, 0, 1]]


@pytest.mark.parametrize("case", CASES, ids=lambda c: c.name)
def test_matches_the_contract(case, threads):
    scores, density = case.args()
    mask = ops.select_topk(scores, density, impl="reference")
    assert torch.equal(mask, by_hand(scores, density))
    assert mask.sum() == round(density * scores.numel())


def test_non_contiguous():
    scores = torch.randn(12, 20).t()
    assert torch.equal(ops.select_topk(scores, 0.3), by_hand(scores, 0.3))


@pytest.mark.parametrize("density", [-0.1, 1.5, float("nan")])
def test_rejects_bad_density(density):
    with pytest.raises(ValueError, match="density"):
        ops.select_topk(torch.zeros(2, 8), density)


def test_opcheck():
    torch.library.opcheck(torch.ops.evoprune.select_topk.default, (torch.randn(5, 13), 0.4))
