"""Bezier-histogram sampler: a plain Python oracle for the counts and the candidates, and the published curve."""

from __future__ import annotations

import math
from fractions import Fraction

import pytest
import torch

from evoprune_kernels.selection import bezier_proportions, select_bezier
from evoprune_kernels.selection.random import random_keys

CURVES = [
    ([1, 0.14, 0.14, 0.1], 0.04, "+"),
    ([1, 1, 0.14, 0.1], 0.64, "+"),
    ([0.81, 0.81, 0.81, 0.71], 0.5, "*"),
    ([0.9, 0.9, 0.5, 0.5], 0.95, "*"),
]


def proportions_by_hand(curve, bins, upscale, scaling) -> list[float]:
    """The formula, point by point: x from 1 to 0, then from 0 to 1."""
    a, b, c, d = curve
    half = bins // 2
    rising = [i / (half - 1) if half > 1 else 0.0 for i in range(half)]
    falling = [1 - x for x in rising]
    y = [
        a * (1 - x) ** 3 + 3 * b * x * (1 - x) ** 2 + 3 * c * x * x * (1 - x) + d * x**3
        for x in falling + rising
    ]
    stretched = [(v - min(y)) / (max(y) - min(y)) for v in y]
    return [min(1.0, v + upscale if scaling == "+" else v * upscale) for v in stretched]


def bins_by_hand(row: list[float]) -> tuple[int, list[int]]:
    """Number of bins, and the bin of each value, in exact arithmetic."""
    bins = int(math.sqrt(len(row)))
    bins += bins % 2
    low, high = Fraction(min(row)), Fraction(max(row))
    if low == high:
        return bins, [bins // 2] * len(row)
    where = [math.floor((Fraction(v) - low) * bins / (high - low)) for v in row]
    return bins, [min(w, bins - 1) for w in where]


def mask_by_hand(values, curve, upscale, scaling, **draw) -> torch.Tensor:
    """In each bin of each row the lowest keys go."""
    matrix = values.flatten(1)
    keys = random_keys(
        matrix.shape,
        seed=draw.get("seed", 0),
        tensor=draw.get("tensor", 0),
        draw=draw.get("epoch", 0),
    ).tolist()
    mask = torch.ones(matrix.shape, dtype=torch.bool)
    for r, row in enumerate(matrix.tolist()):
        bins, where = bins_by_hand(row)
        share = proportions_by_hand(curve, bins, upscale, scaling)
        for b in range(bins):
            members = [i for i in range(len(row)) if where[i] == b]
            count = int(len(members) * share[b])
            for i in sorted(members, key=lambda i: keys[r][i])[:count]:
                mask[r, i] = False
    return mask.view(values.shape)


@pytest.mark.parametrize("curve, upscale, scaling", CURVES)
@pytest.mark.parametrize("bins", [2, 4, 6, 12, 28])
def test_proportions(curve, upscale, scaling, bins):
    actual = bezier_proportions(curve, bins, upscale, scaling)
    expected = proportions_by_hand(curve, bins, upscale, scaling)
    assert actual.dtype == torch.float64
    assert actual.tolist() == pytest.approx(expected, abs=1e-12)
    assert actual.min() >= 0 and actual.max() <= 1


def test_the_peak_is_in_the_middle():
    p = bezier_proportions([1, 0.14, 0.14, 0.1], 28, 0.5, "*")
    assert p[13] == p[14] == 0.5 and p.argmin() in (0, 27)
    assert torch.allclose(p, p.flip(0), rtol=0, atol=1e-15)
    assert bezier_proportions([1, 0.14, 0.14, 0.1], 2, 0.5, "*").tolist() == [0.0, 0.5]


@pytest.mark.parametrize("curve, upscale, scaling", CURVES)
@pytest.mark.parametrize(
    "shape", [(5, 1), (5, 2), (4, 3), (3, 8), (3, 9), (6, 17), (2, 3, 5, 5), (3, 400)]
)
def test_against_the_oracle(shape, curve, upscale, scaling):
    values = torch.randn(shape)
    draw = {"seed": 7, "tensor": 2, "epoch": 5}
    mask = select_bezier(values, curve, upscale, scaling=scaling, **draw)
    assert mask.dtype == torch.bool
    assert torch.equal(mask, mask_by_hand(values, curve, upscale, scaling, **draw))


def test_many_ties_and_values_on_edges():
    values = torch.randint(-4, 5, (7, 64)).float() / 8
    values[2] = 0.125
    values[3, :60] = 0.0
    for curve, upscale, scaling in CURVES:
        expected = mask_by_hand(values, curve, upscale, scaling)
        assert torch.equal(select_bezier(values, curve, upscale, scaling=scaling), expected)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64])
def test_dtypes_and_strides(dtype):
    values = torch.randn(30, 4).to(dtype).t()
    expected = mask_by_hand(values.contiguous(), *CURVES[0])
    assert torch.equal(select_bezier(values, *CURVES[0][:2]), expected)


def test_counts_match_torch_histc():
    """Nothing of the sampler is used: counts of bins by torch, sums of the dropped by value."""
    values = torch.randn(6, 300, dtype=torch.float64)
    curve, upscale = [1, 0.14, 0.14, 0.1], 0.3
    mask = select_bezier(values, curve, upscale)
    share = proportions_by_hand(curve, 18, upscale, "+")  # floor(sqrt(300)) = 17
    for row, keep in zip(values, mask, strict=True):
        whole = torch.histc(row, bins=18)
        low, high = row.min().item(), row.max().item()
        dropped = torch.histc(row[~keep], bins=18, min=low, max=high)
        assert dropped.tolist() == [int(n * p) for n, p in zip(whole.tolist(), share, strict=True)]


@pytest.mark.parametrize("n", [1, 2, 3, 4, 30])
def test_rows_of_equal_values_are_one_bin(n):
    values = torch.full((3, n), -0.7)
    assert torch.histc(values[0], bins=4).tolist() == [0, 0, n, 0]  # where torch counts them
    mask = select_bezier(values, [1, 0.14, 0.14, 0.1], 0.5, scaling="*")
    assert (~mask).sum(1).tolist() == [n // 2] * 3


def test_two_weights():
    # two bins, the left at d and the right at a: the larger weight goes
    values = torch.tensor([[1.0, -3.0], [0.0, 5.0]])
    assert select_bezier(values, [1, 0.14, 0.14, 0.1], 1.0, scaling="*").tolist() == [
        [False, True],
        [True, False],
    ]


def test_empty():
    for shape in [(0, 5), (3, 0), (2, 0, 4)]:
        assert select_bezier(torch.zeros(shape), *CURVES[0][:2]).shape == shape


def test_old_mask_stays_in_force():
    values, old = torch.randn(8, 50), torch.rand(8, 50) < 0.5
    drawn = select_bezier(values, *CURVES[0][:2], seed=3)
    assert torch.equal(select_bezier(values, *CURVES[0][:2], seed=3, old=old), drawn & old)


def test_deterministic_and_independent_draws(threads):
    values = torch.randn(16, 400)

    def draw(**numbers):
        return select_bezier(values, [1, 1, 0.14, 0.1], 0.5, scaling="*", **numbers)

    state = torch.get_rng_state()
    first = draw(seed=1, tensor=0, epoch=0)
    assert torch.equal(first, draw(seed=1, tensor=0, epoch=0))
    assert torch.equal(state, torch.get_rng_state())
    for other in ({"seed": 2}, {"seed": 1, "tensor": 1}, {"seed": 1, "epoch": 1}):
        second = draw(**other)
        assert second.sum() == first.sum() and not torch.equal(first, second)
    # rows of one tensor are not drawn alike either
    same = values[:1].expand(16, 400)
    rows = select_bezier(same, [1, 1, 0.14, 0.1], 0.5, scaling="*")
    assert len({tuple(row) for row in rows.tolist()}) == 16


def test_every_member_of_a_bin_goes_alike():
    values = torch.arange(16.0).view(1, 16)  # four bins of four
    draws = torch.stack(
        [
            select_bezier(values, [1, 0.5, 0.5, 0.1], 0.5, scaling="*", epoch=e)[0]
            for e in range(2000)
        ]
    )
    dropped = 1 - draws.double().mean(0)
    assert dropped[:4].max() == dropped[12:].max() == 0
    # 0.5 with a deviation of 0.0112: five of them
    assert (dropped[4:12] - 0.5).abs().max() < 0.056


def test_rejects():
    values, curve = torch.randn(3, 9), [1, 0.14, 0.14, 0.1]
    with pytest.raises(ValueError, match=r"2 dimensions, got 1 \(shape \(9,\)\)"):
        select_bezier(values[0], curve, 0.5)
    with pytest.raises(ValueError, match=r"scaling in \('\+', '\*'\), got '/'"):
        select_bezier(values, curve, 0.5, scaling="/")
    with pytest.raises(ValueError, match=r"four finite numbers, got \[1, 2\]"):
        select_bezier(values, [1, 2], 0.5)
    with pytest.raises(ValueError, match="upscale >= 0, got -1"):
        select_bezier(values, curve, -1)
    with pytest.raises(ValueError, match=r"not flat on 4 bins, got \[1, 1, 1, 1\], which is 1"):
        select_bezier(values, [1, 1, 1, 1], 0.5)
    with pytest.raises(ValueError, match="even number of bins >= 2, got 3"):
        bezier_proportions(curve, 3, 0.5)
    with pytest.raises(TypeError, match=r"old of dtype torch\.bool, got torch\.float32"):
        select_bezier(values, curve, 0.5, old=values)
    with pytest.raises(ValueError, match=r"old of shape \(3, 9\), got \(3, 8\)"):
        select_bezier(values, curve, 0.5, old=torch.ones(3, 8).bool())
    values[1, 2] = float("nan")
    with pytest.raises(ValueError, match="finite values, got 1 of 27"):
        select_bezier(values, curve, 0.5)
