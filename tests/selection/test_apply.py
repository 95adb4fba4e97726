"""One call from scores to masks: exact totals, and each layer the top of its budget."""

from __future__ import annotations

import math

import pytest
import torch

from evoprune_kernels.selection import (
    BUDGETS,
    budget_counts,
    erk,
    proportional,
    select_all,
    uniform,
)

SHAPES = {"conv": (4, 3, 3, 3), "fc": (20, 36), "head": (5, 20), "scale": (7,), "none": (0, 4)}


def scores(ties: bool = False) -> dict[str, torch.Tensor]:
    return {n: (torch.randn(s) * 2).round() if ties else torch.randn(s) for n, s in SHAPES.items()}


def top_by_hand(values: torch.Tensor, count: int) -> torch.Tensor:
    flat = values.flatten().tolist()
    mask = torch.zeros(len(flat), dtype=torch.bool)
    mask[sorted(range(len(flat)), key=lambda i: (-flat[i], i))[:count]] = True
    return mask.view(values.shape)


@pytest.mark.parametrize("ties", [False, True])
@pytest.mark.parametrize("kept", [0.001, 0.1, 0.5, 0.93, 1.0])
@pytest.mark.parametrize("budget", BUDGETS)
def test_exact(budget, kept, ties):
    s = scores(ties)
    masks = select_all(s, kept, budget)
    assert list(masks) == list(s)
    entries = sum(math.prod(shape) for shape in SHAPES.values())
    assert sum(int(m.sum()) for m in masks.values()) == round(kept * entries)
    if budget == "global":
        flat = torch.cat([x.flatten() for x in s.values()])
        joined = torch.cat([m.flatten() for m in masks.values()])
        assert torch.equal(joined, top_by_hand(flat, round(kept * entries)))
        return
    counts = budget_counts({"uniform": uniform, "erk": erk}[budget](SHAPES, kept), SHAPES)
    for name, mask in masks.items():
        assert torch.equal(mask, top_by_hand(s[name], counts[name]))


def test_a_layer_budget():
    s = scores()
    sizes = {name: math.prod(shape) for name, shape in SHAPES.items()}
    budget = proportional({n: float(i) for i, n in enumerate(SHAPES)}, sizes, 0.3, floor_kept=0.05)
    masks = select_all(s, budget)
    assert sum(int(m.sum()) for m in masks.values()) == round(0.3 * sum(sizes.values()))
    for name, mask in masks.items():
        assert torch.equal(mask, top_by_hand(s[name], round(budget[name] * sizes[name])))


def test_no_layers():
    for budget in BUDGETS:
        assert select_all({}, 0.5, budget) == {}


def test_rejects():
    s = scores()
    with pytest.raises(ValueError, match=r"budget in .*, got 'layer'"):
        select_all(s, 0.5, "layer")
    for budget in BUDGETS:
        for kept in (0.0, 1.1, float("nan")):
            with pytest.raises(ValueError, match=f"kept <= 1, got {kept}"):
                select_all(s, kept, budget)
    with pytest.raises(ValueError, match=r"got one of \['conv'\]"):
        select_all(s, {"conv": 0.5})
    with pytest.raises(ValueError, match=r"layer 'fc', got -0\.5"):
        select_all(s, {name: -0.5 if name == "fc" else 0.5 for name in s})
