"""Threshold by spread: the published formulas, a plain Python oracle, and the exact rate."""

from __future__ import annotations

import itertools
import math
import statistics

import pytest
import torch

from evoprune_kernels import ops
from evoprune_kernels.selection import rate_for, select_threshold, spread_ratio

NAN, INF = float("nan"), float("inf")
FLAGS = [
    {"absolute": a, "nonzero": z, "inclusive": i}
    for a, z, i in itertools.product((False, True), repeat=3)
]


def by_hand(ranked, spread_of, rate, absolute, nonzero, inclusive) -> list[bool]:
    """The formula, in Python floats."""
    values = [abs(x) if absolute else x for x in spread_of if x != 0 or not nonzero]
    std = statistics.stdev(values) if len(values) > 1 else 0.0
    return [abs(x) >= rate * std if inclusive else abs(x) > rate * std for x in ranked]


def normal(count: int) -> torch.Tensor:
    """The quantiles of a normal distribution: a sample without chance."""
    p = (torch.arange(count, dtype=torch.float64) + 0.5) / count
    return torch.special.ndtri(p)


@pytest.mark.parametrize("flags", FLAGS, ids=str)
@pytest.mark.parametrize("size", [0, 1, 2, 3, 17, 400])
@pytest.mark.parametrize("rate", [0.0, 0.5, 1.3, 3.2])
def test_matches_the_formula(size, rate, flags):
    # quarters: every weight and every sum is exact, and many are zero or tied
    w = torch.randint(-6, 7, (size,)) / 4
    average = torch.randint(-5, 6, (size,)) / 4
    for ranked, spread_of in ((w, w), (w, average), (average, average)):
        mask = select_threshold(ranked, spread_of, rate, **flags)
        assert mask.dtype == torch.bool and mask.shape == ranked.shape
        assert mask.tolist() == by_hand(ranked.tolist(), spread_of.tolist(), rate, **flags)


@pytest.mark.parametrize(
    "rate, signed, absolute", [(1.5, 0.866, 0.634), (2.0, 0.954, 0.772), (0.5, 0.383, 0.237)]
)
def test_published_shares_of_a_normal_tensor(rate, signed, absolute):
    w = normal(200_001)
    for flag, expected, factor in (
        (False, signed, 1.0),
        (True, absolute, math.sqrt(1 - 2 / math.pi)),
    ):
        pruned = 1 - select_threshold(w, w, rate, absolute=flag).double().mean().item()
        assert pruned == pytest.approx(math.erf(rate * factor / math.sqrt(2)), abs=1e-4)
        assert pruned == pytest.approx(expected, abs=6e-4)


def test_the_deviation_is_torch_std():
    w = torch.randn(1000, dtype=torch.float64)
    w[::3] = 0
    assert torch.equal(spread_ratio(w, w), w.abs() / torch.std(w))
    assert torch.equal(spread_ratio(w, w, absolute=True), w.abs() / torch.std(w.abs()))
    assert torch.equal(spread_ratio(w, w, nonzero=True), w.abs() / torch.std(w[w != 0]))


def test_current_weight_against_the_spread_of_the_average():
    w, average = torch.tensor([1.0, -3.0, 2.0]), torch.tensor([-2.0, 0.0, 2.0])  # deviation 2
    assert select_threshold(w, average, 1.0).tolist() == [False, True, False]
    assert select_threshold(w, average, 1.0, inclusive=True).tolist() == [False, True, True]


@pytest.mark.parametrize("value", [0.1, -3.0, 0.0])
@pytest.mark.parametrize("size", [1, 2, 7])
def test_without_spread_the_threshold_is_zero(value, size):
    w = torch.full(
        (size,), value
    )  # the mean of seven 0.1 is rounded, the deviation is 0 nevertheless
    assert select_threshold(w, w, 2.0).tolist() == [value != 0] * size
    assert select_threshold(w, w, 2.0, inclusive=True).tolist() == [True] * size


def test_not_a_number():
    w = torch.tensor([NAN, 1.0, -INF])
    average = torch.tensor([1.0, 0.0, -1.0])
    assert select_threshold(w, average, 0.5, inclusive=True).tolist() == [False, True, True]
    assert select_threshold(w, torch.ones(3), 0.5, inclusive=True).tolist() == [False, True, True]
    with pytest.raises(ValueError, match=r"finite values in spread_of, got 2 of 3"):
        select_threshold(average, w, 0.5)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_dtypes_and_shapes(dtype):
    w = torch.randn(4, 3, 5).to(dtype)
    expected = by_hand(w.flatten().tolist(), w.flatten().tolist(), 0.7, False, False, False)
    assert select_threshold(w, w, 0.7).flatten().tolist() == expected
    columns = w.transpose(0, 2)
    assert torch.equal(
        select_threshold(columns, columns, 0.7), select_threshold(w, w, 0.7).transpose(0, 2)
    )


def test_rejects():
    w = torch.ones(3)
    with pytest.raises(ValueError, match="rate >= 0, got -1"):
        select_threshold(w, w, -1)
    with pytest.raises(ValueError, match="rate >= 0, got nan"):
        select_threshold(w, w, NAN)
    with pytest.raises(ValueError, match=r"spread_of of shape \(3,\), got \(2,\)"):
        select_threshold(w, torch.ones(2), 1.0)
    with pytest.raises(ValueError, match="kept <= 1, got 0"):
        rate_for([w], [w], 0)
    with pytest.raises(ValueError, match=r"ranked \(1\), got 0"):
        rate_for([w], [], 0.5)
    with pytest.raises(ValueError, match="got 0 entries"):
        rate_for([torch.ones(0)], [torch.ones(0)], 0.5)


# ---- the rate for a share ----
def kept_count(ranked, spread_of, rate, flags) -> int:
    pairs = zip(ranked, spread_of, strict=True)
    return sum(int(select_threshold(r, s, rate, **flags).sum()) for r, s in pairs)


@pytest.mark.parametrize("flags", FLAGS, ids=str)
@pytest.mark.parametrize("kept", [0.001, 0.05, 0.366, 0.5, 0.97, 1.0])
def test_rate_is_exact(kept, flags):
    ranked = [torch.randn(31, 7), 0.1 * torch.randn(203), torch.randn(5, 4, 3) + 2]
    spread_of = [r + 0.1 * torch.randn(r.shape) for r in ranked]
    total = sum(r.numel() for r in ranked)
    rate = rate_for(ranked, spread_of, kept, **flags)
    assert kept_count(ranked, spread_of, rate, flags) == max(1, round(kept * total))


def test_rate_is_a_pooled_ranking():
    ranked = [torch.randn(31, 7), 0.1 * torch.randn(203)]
    rate = rate_for(ranked, ranked, 0.25)
    expected = ops.select_topk_global([spread_ratio(r, r) for r in ranked], 0.25)
    for r, mask in zip(ranked, expected, strict=True):
        assert torch.equal(select_threshold(r, r, rate), mask)


@pytest.mark.parametrize("flags", FLAGS, ids=str)
def test_rate_with_ties_keeps_all_that_are_tied(flags):
    ranked = [torch.randint(-3, 4, (97,)) / 2, torch.randint(-2, 3, (50,)) / 2]
    total = 147
    counts = set()
    for wanted in range(1, total + 1):
        rate = rate_for(ranked, ranked, wanted / total, **flags)
        count = kept_count(ranked, ranked, rate, flags)
        counts.add(count)
        if flags["inclusive"] or wanted <= sum(int(r.count_nonzero()) for r in ranked):
            assert count >= wanted
            # anything above the rate's gap keeps less than was asked for
            ratios = torch.cat([spread_ratio(r, r, **flags) for r in ranked])
            lowest_kept = float(ratios[ratios >= rate].min()) if rate else 0.0
            above = math.nextafter(lowest_kept, INF)
            if lowest_kept > rate:
                assert kept_count(ranked, ranked, above, flags) < wanted
        else:
            assert rate == 0
    assert len(counts) > 3


def test_rate_without_spread_and_with_nan():
    constant, w = torch.ones(4), torch.tensor([1.0, -2.0, 3.0, NAN])
    spread = torch.tensor([1.0, 2.0, 3.0, 4.0])
    for inclusive in (False, True):
        flags = {"inclusive": inclusive}
        rate = rate_for([constant, w], [constant, spread], 5 / 8, **flags)
        assert kept_count([constant, w], [constant, spread], rate, flags) == 5
        rate = rate_for([constant, w], [constant, spread], 2 / 8, **flags)  # four are tied at inf
        assert math.isfinite(rate)
        assert kept_count([constant, w], [constant, spread], rate, flags) == 4
        rate = rate_for([constant, w], [constant, spread], 1.0, **flags)  # NaN never stays
        assert kept_count([constant, w], [constant, spread], rate, flags) == 7


def test_rate_between_neighbouring_floats():
    one, spread = torch.tensor([1.0, math.nextafter(1.0, 2.0)], dtype=torch.float64), None
    spread = torch.tensor([-1.0, 1.0], dtype=torch.float64) / math.sqrt(2)
    for inclusive in (False, True):
        rate = rate_for([one], [spread], 0.5, inclusive=inclusive)
        assert select_threshold(one, spread, rate, inclusive=inclusive).tolist() == [False, True]
