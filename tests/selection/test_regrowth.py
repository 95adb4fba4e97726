"""Drop and grow: literal exchanges, an oracle in Python lists, and the annealing."""

from __future__ import annotations

import math

import pytest
import torch

from evoprune_kernels.selection import cosine_fraction, drop_and_grow, random_mask, random_scores

NAN, INF = float("nan"), float("inf")


def order(scores: list[float], indices: list[int]) -> list[int]:
    """Highest first; ties: lowest index; NaN last."""
    return sorted(
        indices,
        key=lambda i: (math.isnan(scores[i]), 0 if math.isnan(scores[i]) else -scores[i], i),
    )


def by_hand(weight, mask, scores, fraction, regrow_dropped) -> set[int]:
    size = [abs(w) for w in weight.flatten().tolist()]
    scores, old = scores.flatten().tolist(), mask.flatten().tolist()
    active = [i for i in range(len(old)) if old[i]]
    inactive = [i for i in range(len(old)) if not old[i]]
    count = int(fraction * len(active))
    if not regrow_dropped:
        count = min(count, len(inactive))
    kept = order(size, active)[: len(active) - count]
    outside = [i for i in range(len(old)) if i not in kept] if regrow_dropped else inactive
    return set(kept) | set(order(scores, outside)[:count])


@pytest.mark.parametrize("regrow_dropped", [True, False])
@pytest.mark.parametrize("fraction", [0.0, 0.1, 0.3, 0.77, 1.0])
@pytest.mark.parametrize("kept", [0.0, 0.2, 0.5, 0.9, 1.0])
@pytest.mark.parametrize("shape", [(1,), (7,), (9, 13), (4, 3, 2, 2), (0, 3)])
def test_against_the_oracle(shape, kept, fraction, regrow_dropped):
    for ties in (False, True):
        weight = torch.randn(shape)
        gradient = torch.randn(shape).abs()
        if ties:
            weight, gradient = weight.round(), gradient.round()
        mask = random_mask(shape, kept, seed=1, draw=ties)
        weight = weight * mask
        before = mask.clone()
        result = drop_and_grow(weight, mask, gradient, fraction, regrow_dropped=regrow_dropped)
        expected = by_hand(weight, mask, gradient, fraction, regrow_dropped)
        assert result.mask.shape == shape and result.mask.dtype == torch.bool
        assert set(result.mask.flatten().nonzero().flatten().tolist()) == expected
        assert torch.equal(mask, before)
        assert result.mask.sum() == mask.sum()
        assert torch.equal(result.grown, result.mask & ~mask)
        assert torch.equal(result.dropped, mask & ~result.mask)


def test_rigl_by_hand():
    weight = torch.tensor([[5.0, -0.1, 2.0], [0.0, 0.0, 0.0]])
    mask = torch.tensor([[True, True, True], [False, False, False]])
    gradient = torch.tensor([[9.0, 9.0, 9.0], [1.0, 3.0, 2.0]])
    fresh = drop_and_grow(weight, mask, gradient, 0.34, regrow_dropped=False)
    assert fresh.mask.tolist() == [[True, False, True], [False, True, False]]
    assert fresh.grown.tolist() == [[False, False, False], [False, True, False]]
    assert fresh.dropped.tolist() == [[False, True, False], [False, False, False]]
    # the dropped one has the largest gradient: it is grown back and keeps its value
    back = drop_and_grow(weight, mask, gradient, 0.34)
    assert torch.equal(back.mask, mask)
    assert not back.grown.any() and not back.dropped.any()


def test_a_zero_weight_of_the_mask_is_dropped_before_a_larger_one_and_never_for_an_inactive():
    weight, mask = torch.zeros(4), torch.tensor([False, True, False, True])
    result = drop_and_grow(weight, mask, torch.tensor([1.0, 0.0, 2.0, 0.0]), 0.5)
    assert result.mask.tolist() == [False, True, True, False]


def test_not_a_number():
    weight = torch.tensor([NAN, 1.0, INF, 0.0, 0.0, 0.0])
    mask = torch.tensor([True, True, True, False, False, False])
    scores = torch.tensor([NAN, 0.0, 0.0, NAN, -INF, NAN])
    result = drop_and_grow(weight, mask, scores, 0.34)
    assert result.mask.tolist() == [False, True, True, False, True, False]


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64])
def test_dtypes_and_strides(dtype):
    weight, gradient = torch.randn(9, 7).to(dtype).t(), torch.randn(9, 7).to(dtype).abs().t()
    mask = random_mask((7, 9), 0.4, seed=2)
    expected = by_hand(weight.contiguous().float(), mask, gradient.contiguous().float(), 0.5, True)
    actual = drop_and_grow(weight, mask, gradient, 0.5).mask
    assert set(actual.flatten().nonzero().flatten().tolist()) == expected


def test_set_grows_anywhere_alike():
    weight = torch.tensor([3.0, 2.0, 1.0, 0.0, 0.0, 0.0, 0.0, 0.0])
    mask = weight > 0
    grown = torch.zeros(8)
    for draw in range(2000):
        scores = random_scores((8,), seed=4, draw=draw)
        grown += drop_and_grow(weight, mask, scores, 0.34, regrow_dropped=False).grown
    assert grown[:3].sum() == 0 and grown.sum() == 2000
    # 0.2 with a deviation of 0.009: five of them
    assert (grown[3:] / 2000 - 0.2).abs().max() < 0.045


def test_a_run_keeps_its_count():
    weight, mask = torch.randn(20, 30), random_mask((20, 30), 0.1, seed=0)
    for step in range(50):
        fraction = cosine_fraction(step, 50, 0.3)
        gradient = random_scores((20, 30), seed=1, draw=step)
        mask = drop_and_grow(weight * mask, mask, gradient, fraction).mask
        assert mask.sum() == 60


def test_cosine():
    for t in range(0, 120, 7):
        expected = 0.3 * (math.cos(math.pi * min(t, 100) / 100) + 1) / 2
        assert cosine_fraction(t, 100, 0.3) == pytest.approx(expected, abs=1e-15)
    assert cosine_fraction(0, 100, 0.3) == 0.3
    assert cosine_fraction(100, 100, 0.3) == cosine_fraction(10**9, 100, 0.3) == 0.0


def test_rejects():
    weight, mask = torch.randn(3), torch.ones(3, dtype=torch.bool)
    for fraction in (-0.1, 1.1, NAN):
        with pytest.raises(ValueError, match=f"fraction <= 1, got {fraction}"):
            drop_and_grow(weight, mask, weight, fraction)
    with pytest.raises(TypeError, match=r"mask of dtype torch\.bool, got torch\.float32"):
        drop_and_grow(weight, weight, weight, 0.1)
    with pytest.raises(ValueError, match=r"mask of shape \(3,\), got \(2,\)"):
        drop_and_grow(weight, mask[:2], weight, 0.1)
    with pytest.raises(ValueError, match=r"growth_scores of shape \(3,\), got \(2,\)"):
        drop_and_grow(weight, mask, weight[:2], 0.1)
    with pytest.raises(ValueError, match="t >= 0, got -1"):
        cosine_fraction(-1, 10, 0.3)
    with pytest.raises(ValueError, match="end >= 1, got 0"):
        cosine_fraction(1, 0, 0.3)
    with pytest.raises(ValueError, match="start_fraction <= 1, got 2"):
        cosine_fraction(1, 10, 2)
