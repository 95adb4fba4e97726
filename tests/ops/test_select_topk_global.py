"""select_topk_global: literal masks, an independent oracle, exact counts, opcheck."""

from __future__ import annotations

import pytest
import torch

from evoprune_kernels import ops
from evoprune_kernels.ops.select_topk_global.cases import CASES


def by_hand(scores: list[torch.Tensor], density: float) -> list[torch.Tensor]:
    """The contract, word by word, in Python."""
    flat = [x for s in scores for x in s.float().reshape(-1).tolist()]
    order = sorted(
        range(len(flat)), key=lambda i: (flat[i] != flat[i], -flat[i] if flat[i] == flat[i] else 0)
    )
    kept = set(order[: round(density * len(flat))])
    masks, start = [], 0
    for s in scores:
        bits = [start + i in kept for i in range(s.numel())]
        masks.append(torch.tensor(bits, dtype=torch.bool).view(s.shape))
        start += s.numel()
    return masks


def test_literal():
    scores = [torch.tensor([0.5, 2.0]), torch.tensor([[2.0], [2.0]])]
    first, second = ops.select_topk_global(scores, 0.5)
    assert first.int().tolist() == [0, 1]
    assert second.int().tolist() == [[1], [0]]


@pytest.mark.parametrize("case", CASES, ids=lambda c: c.name)
def test_matches_the_contract(case, threads):
    scores, density = case.args()
    masks = ops.select_topk_global(scores, density, impl="reference")
    for mask, expected in zip(masks, by_hand(scores, density), strict=True):
        assert torch.equal(mask, expected)
    kept = sum(int(mask.sum()) for mask in masks)
    assert kept == round(density * sum(s.numel() for s in scores))


def test_one_tensor_is_select_topk():
    scores = torch.randn(12, 20).t()
    (mask,) = ops.select_topk_global([scores], 0.3)
    assert torch.equal(mask, ops.select_topk(scores, 0.3))


def test_no_tensors():
    assert ops.select_topk_global([], 0.5) == []


@pytest.mark.parametrize("density", [-0.1, 1.5, float("nan")])
def test_rejects_bad_density(density):
    with pytest.raises(ValueError, match="density"):
        ops.select_topk_global([torch.zeros(2, 8)], density)


def test_opcheck():
    scores = [torch.randn(5, 13), torch.randn(4)]
    torch.library.opcheck(torch.ops.evoprune.select_topk_global.default, (scores, 0.4))
