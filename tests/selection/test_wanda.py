"""Wanda: masks against Python loops, ties, and real models."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn

import evoprune_kernels as ek
from evoprune_kernels.selection import wanda_masks, wanda_scores
from tests.selection.test_calibration import Conv1D


def scores_by_hand(weight, x):
    """|w_ij| * sqrt(sum x_j^2), in Python floats."""
    norms = [sum(float(v) ** 2 for v in column) ** 0.5 for column in x.t()]
    return [[abs(w) * n for w, n in zip(row, norms, strict=True)] for row in weight.tolist()]


def keep_best(scores, count):
    """Positions of the ``count`` highest; ties: the first."""
    return set(sorted(range(len(scores)), key=lambda j: (-scores[j], j))[:count])


def rows_by_hand(scores, count):
    return [[j in keep_best(row, count) for j in range(len(row))] for row in scores]


def groups_by_hand(scores, n, m):
    masks = []
    for row in scores:
        groups = [row[start : start + m] for start in range(0, len(row), m)]
        masks.append([i in keep_best(group, n) for group in groups for i in range(len(group))])
    return masks


def model_and_data(k=13, n=7):
    model = nn.Sequential(nn.Linear(k, n))
    return model, torch.randn(31, k) * torch.logspace(-1, 1, k)[torch.randperm(k)]


@pytest.mark.parametrize("kept", [0.1, 0.37, 0.5, 1.0])
def test_rows(kept):
    model, x = model_and_data()
    masks = wanda_masks(model, x.split(10), kept=kept)
    expected = rows_by_hand(scores_by_hand(model[0].weight, x), round(kept * 13))
    assert list(masks) == ["0.weight"] and masks["0.weight"].tolist() == expected


@pytest.mark.parametrize("n, m", [(2, 4), (1, 3), (4, 8)])
def test_groups(n, m):
    model, x = model_and_data()
    mask = wanda_masks(model, [x], pattern=f"{n}:{m}")["0.weight"]
    assert mask.tolist() == groups_by_hand(scores_by_hand(model[0].weight, x), n, m)


def test_tensor():
    model, x = model_and_data()
    mask = wanda_masks(model, [x], kept=0.4, compare="tensor")["0.weight"]
    flat = [s for row in scores_by_hand(model[0].weight, x) for s in row]
    best = keep_best(flat, round(0.4 * len(flat)))
    assert mask.flatten().tolist() == [i in best for i in range(len(flat))]


def test_ties_the_lowest_column_wins():
    model = nn.Sequential(nn.Linear(6, 2))
    with torch.no_grad():  # scores [2 2 2 2 2 2] and [0 2 2 1 2 1], by weight times norm
        model[0].weight.copy_(torch.tensor([[2.0, 1, -2, 2, 1, 2], [0.0, -1, 2, 1, 1, 1]]))
    x = torch.tensor([[1.0, 2, 1, 1, 2, 1]])
    assert wanda_masks(model, [x], kept=0.5)["0.weight"].int().tolist() == [
        [1, 1, 1, 0, 0, 0],
        [0, 1, 1, 0, 1, 0],
    ]
    assert wanda_masks(model, [x], pattern="1:3")["0.weight"].int().tolist() == [
        [1, 0, 0, 1, 0, 0],
        [0, 1, 0, 0, 1, 0],
    ]
    flat = wanda_masks(model, [x], kept=0.5, compare="tensor")["0.weight"]
    assert flat.int().tolist() == [[1] * 6, [0] * 6]


def test_differs_from_magnitude_where_inputs_do():
    weight, squares = torch.tensor([[3.0, 1.0]]), torch.tensor([1.0, 100.0])
    assert wanda_scores(weight, squares).argmax() == 1 and weight.argmax() == 0
    assert wanda_scores(weight.bfloat16(), squares.double()).dtype == torch.float32


def test_conv1d_masks_have_the_stored_shape():
    model, x = nn.Sequential(Conv1D(6, 8)), torch.randn(20, 8)
    mask = wanda_masks(model, [x], pattern="2:4")["0.weight"]
    assert mask.shape == (8, 6)
    assert mask.t().tolist() == groups_by_hand(scores_by_hand(model[0].weight.t(), x), 2, 4)


def test_conv2d():
    model, x = nn.Sequential(nn.Conv2d(2, 3, 2)), torch.randn(2, 2, 4, 5)
    mask = wanda_masks(model, [x], kept=0.5)["0.weight"]
    patches = x.unfold(2, 2, 1).unfold(3, 2, 1).permute(0, 2, 3, 1, 4, 5).reshape(-1, 8)
    scores = scores_by_hand(model[0].weight.flatten(1), patches)
    assert mask.shape == (3, 2, 2, 2) and mask.flatten(1).tolist() == rows_by_hand(scores, 4)


def test_budgets_name_the_layers():
    model = nn.Sequential(nn.Linear(8, 4), nn.Linear(4, 4), nn.Linear(4, 4))
    masks = wanda_masks(model, [torch.randn(9, 8)], kept={"2.weight": 0.25, "0.weight": 0.0})
    assert {name: int(mask.sum()) for name, mask in masks.items()} == {"0.weight": 0, "2.weight": 4}
    with pytest.raises(ValueError, match=r"kept names \['3\.weight'\]"):
        wanda_masks(model, [torch.randn(9, 8)], kept={"3.weight": 0.5})


def test_convert_takes_the_masks_and_the_model_was_not_touched():
    model, x = nn.Sequential(nn.Linear(16, 8), nn.ReLU(), nn.Linear(8, 4)), torch.randn(30, 16)
    before = copy.deepcopy(model.state_dict())
    masks = wanda_masks(model, [x], pattern="2:4", exclude=["2"])
    assert all(torch.equal(v, before[k]) for k, v in model.state_dict().items())
    report = ek.convert(model, "2:4", masks=masks)
    assert list(report.swapped) == ["0"]
    assert torch.equal(model[0].weight != 0, masks["0.weight"])


@pytest.mark.parametrize(
    "options, message",
    [
        ({}, "one of kept and pattern, got kept=None, pattern=None"),
        ({"kept": 0.5, "pattern": "2:4"}, "one of kept and pattern"),
        ({"kept": 0.0}, "between 0 and 1, got 0.0"),
        ({"kept": 1.5}, "got 1.5"),
        ({"kept": {"0.weight": -0.1}}, "got -0.1"),
        ({"pattern": "block:4x4"}, "n:m pattern, got 'block:4x4'"),
        ({"kept": 0.5, "compare": "rows"}, "got 'rows'"),
    ],
    ids=str,
)
def test_rejects(options, message):
    model, x = model_and_data()
    with pytest.raises(ValueError, match=message):
        wanda_masks(model, [x], **options)


def test_rejects_nan_in_a_weight():
    model, x = model_and_data()
    with torch.no_grad():
        model[0].weight[1, 2] = float("nan")
    with pytest.raises(ValueError, match=r"0\.weight: expected finite weights, got 1"):
        wanda_masks(model, [x], kept=0.5)
