"""ECoFLaP: scores against closed forms, exact budgets, and weights that come back bit for bit."""

from __future__ import annotations

import copy
import math

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from evoprune_kernels.selection import ecoflap_budgets, layer_scores, wanda_masks
from evoprune_kernels.selection.budgets import proportional as shares_of


def proportional(scores, sizes, kept, floor_kept):
    """Counts instead of shares."""
    shares = shares_of(scores, sizes, kept, floor_kept)
    return {name: round(share * sizes[name]) for name, share in shares.items()}


def cross_entropy(model, batch):
    images, labels = batch
    return F.cross_entropy(model(images), labels)


def bits(model):
    return [p.detach().clone().view(torch.int32) for p in model.parameters()]


def assert_untouched(model, before):
    assert all(torch.equal(p, b) for p, b in zip(bits(model), before, strict=True))


class Total(nn.Module):
    """The loss is linear in both weights: a * sum of the first plus b * sum of the second."""

    def __init__(self, dtype=torch.float64):
        super().__init__()
        self.a = nn.Linear(4, 3, bias=False, dtype=dtype)
        self.b = nn.Linear(4, 2, bias=False, dtype=dtype)

    def forward(self, x):
        return self.a(x[0]).sum() * 3 + self.b(x[0]).sum() * 5


def test_zeroth_order_is_the_directional_derivative():
    """For a linear loss the difference is exact: |sum of gradient * z|; z is seen by watching the weight."""
    model, batches = Total(), [torch.ones(1, 4, dtype=torch.float64) * c for c in (1, 2)]
    base = {name: p.detach().clone() for name, p in model.named_parameters()}
    seen = []

    def loss(model, x):
        seen.append({n: (p.detach() - base[n]).clone() for n, p in model.named_parameters()})
        return model(x)

    scores = layer_scores(model, batches, loss, eps=0.5, seed=3)
    assert len(seen) == 8  # two layers, two batches, two signs
    expected = {"a.weight": 0.0, "b.weight": 0.0}
    for call, (plus, minus) in enumerate(zip(seen[::2], seen[1::2], strict=True)):
        name = list(expected)[call // 2]
        torch.testing.assert_close(plus[name], -minus[name])  # the same noise, drawn twice
        other = next(n for n in expected if n != name)
        assert not plus[other].any() and not minus[other].any()  # one layer at a time
        slope = {"a.weight": 3, "b.weight": 5}[name] * (1, 2)[call % 2]
        expected[name] += abs(slope * float(plus[name].sum()) / 0.5)
    assert scores == pytest.approx(expected, rel=1e-9)
    draws = [s["a.weight"] / 0.5 for s in seen[:4:2]] + [s["b.weight"] / 0.5 for s in seen[4::2]]
    assert not torch.equal(draws[0], draws[1])  # each batch has its own noise
    noise = torch.cat([d.flatten() for d in draws])
    assert abs(noise.mean()) < 0.6 and 0.6 < noise.std() < 1.4


def test_first_order_is_its_formula():
    model, batches = Total(), [torch.tensor([[1.0, 2, 3, 4]]).double(), torch.ones(1, 4).double()]
    scores = layer_scores(model, batches, lambda m, x: m(x), order="first")
    for name, slope, weight in (("a.weight", 3, model.a.weight), ("b.weight", 5, model.b.weight)):
        expected = 0.0
        for row in weight.tolist():
            for j, w in enumerate(row):
                expected += w * w * ((slope * (j + 1)) ** 2 + slope**2) / 2
        assert scores[name] == pytest.approx(expected, rel=1e-12)


@pytest.mark.parametrize("order", ["zeroth", "first"])
def test_the_model_comes_back_bit_for_bit(digits, order):
    model, batches = copy.deepcopy(digits[0]), digits[1]
    model.train()
    model[1].eval()
    model[0].weight.requires_grad_(False)
    with torch.no_grad():
        model[2].weight[0, 0] = -0.0
    cross_entropy(model, batches[0]).backward()
    grads = [None if p.grad is None else p.grad.clone() for p in model.parameters()]
    before, modes = bits(model), [m.training for m in model.modules()]

    def fails(model, batch):
        calls.append(1)
        if len(calls) == 4:
            raise KeyError("in the middle")
        return cross_entropy(model, batch)

    calls = []
    with pytest.raises(KeyError):
        layer_scores(model, batches, fails, order=order)
    assert_untouched(model, before)
    state = torch.get_rng_state()
    scores = layer_scores(model, batches, cross_entropy, order=order)
    assert torch.equal(torch.get_rng_state(), state)
    assert_untouched(model, before)
    assert list(scores) == ["0.weight", "2.weight", "4.weight"] and min(scores.values()) > 0
    assert [m.training for m in model.modules()] == modes
    assert [p.requires_grad for p in model.parameters()][:2] == [False, True]
    for p, g in zip(model.parameters(), grads, strict=True):
        assert p.grad is None if g is None else torch.equal(p.grad, g)


def test_seeds(digits):
    model, batches = digits
    one, again = (layer_scores(model, batches, cross_entropy, seed=1) for _ in range(2))
    other = layer_scores(model, batches, cross_entropy, seed=2)
    assert one == again and all(one[name] != other[name] for name in one)
    part = layer_scores(model, batches, cross_entropy, seed=1, exclude=["0"])
    assert part == {name: one[name] for name in ("2.weight", "4.weight")}


@pytest.mark.parametrize("kept", [0.05, 0.31, 0.5, 0.95, 1.0])
@pytest.mark.parametrize("order", ["zeroth", "first"])
def test_budgets_add_up_and_wanda_takes_them(digits, kept, order):
    model, batches = digits
    budgets = ecoflap_budgets(model, batches, cross_entropy, kept, order=order)
    sizes = {name: model.get_parameter(name).numel() for name in budgets}
    counts = {name: round(share * sizes[name]) for name, share in budgets.items()}
    assert sum(counts.values()) == round(kept * sum(sizes.values()))
    for name in sizes:
        assert counts[name] / sizes[name] == budgets[name]
        assert math.ceil(sizes[name] * (kept - 0.1) - 1e-6) <= counts[name] <= sizes[name]
    masks = wanda_masks(model, batches, kept=budgets, forward=lambda m, b: m(b[0]))
    for name, mask in masks.items():
        per_row = round(budgets[name] * mask.shape[1])
        assert (mask.sum(1) == per_row).all()


def by_units(scores, sizes, total, floor):
    """Water-filling in small steps: every open group grows at the speed of its score until all is given out."""
    counts = {g: float(math.ceil(sizes[g] * floor)) for g in sizes}
    while total - sum(counts.values()) > 1e-9:
        active = [g for g in sizes if counts[g] < sizes[g] - 1e-12]
        speed = sum(scores[g] for g in active)
        rest = total - sum(counts.values())
        # until the first group is full, or everything is given out
        step = min([rest / speed, *((sizes[g] - counts[g]) / scores[g] for g in active)])
        for g in active:
            counts[g] += step * scores[g]
    return counts


@pytest.mark.parametrize("seed", range(6))
def test_proportional_is_water_filling(seed):
    generator = torch.Generator().manual_seed(seed)
    sizes = {g: int(n) for g, n in enumerate(torch.randint(50, 900, (7,), generator=generator))}
    scores = {g: float(s) for g, s in enumerate(torch.rand(7, generator=generator) ** 4 + 1e-3)}
    total = round(0.6 * sum(sizes.values()))
    found = proportional(scores, sizes, 0.6, 0.5)
    expected = by_units(scores, sizes, total, 0.5)
    assert sum(found.values()) == total
    assert all(abs(found[g] - expected[g]) < 1 for g in sizes), (found, expected)


def test_proportional_literal():
    sizes = {"a": 10, "b": 10, "c": 10}
    assert proportional({"a": 1.0, "b": 1.0, "c": 1.0}, sizes, 0.5, 0.4) == {
        "a": 5,
        "b": 5,
        "c": 5,
    }
    # 100 : 1 : 1 fills a; the other 5 are split evenly, and the odd one goes to the first
    assert proportional({"a": 100.0, "b": 1.0, "c": 1.0}, sizes, 0.5, 0.0) == {
        "a": 10,
        "b": 3,
        "c": 2,
    }
    # no score left to go by: the room decides
    assert proportional({"a": 1.0, "b": 0.0, "c": 0.0}, sizes, 0.5, 0.1) == {
        "a": 10,
        "b": 3,
        "c": 2,
    }
    assert proportional({"a": 0.0, "b": 0.0, "c": 5.0}, sizes, 0.1, 0.0) == {
        "a": 0,
        "b": 0,
        "c": 3,
    }
    with pytest.raises(ValueError, match=r"keeps 3 weights, more than the 2 that kept=0\.5"):
        proportional({"a": 1.0, "b": 1.0, "c": 1.0}, {"a": 1, "b": 1, "c": 1}, 0.5, 0.4)


def test_a_layer_without_effect_keeps_the_floor():
    class Model(nn.Module):
        def __init__(self):
            super().__init__()
            self.used, self.idle = nn.Linear(10, 10), nn.Linear(10, 10)

        def forward(self, x):
            return self.used(x) + 0 * self.idle(x)

    budgets = ecoflap_budgets(Model(), [torch.randn(3, 10)], lambda m, x: m(x).square().sum(), 0.5)
    assert budgets == {"used.weight": 0.6, "idle.weight": 0.4}


@pytest.mark.parametrize(
    "options, message",
    [
        ({"kept": 0.0}, "0 < kept <= 1, got 0.0"),
        ({"floor_kept": 0.6}, "floor_kept <= kept=0.5, got 0.6"),
        ({"order": "second"}, "got 'second'"),
        ({"eps": 0.0}, "got 0.0"),
        ({"batches": []}, "at least one calibration batch"),
        ({"batches": [], "order": "first"}, "at least one calibration batch"),
        ({"loss": lambda m, x: m(x)}, r"scalar loss, got one of shape \(3, 4\)"),
        ({"loss": lambda m, x: m(x).sum() * math.nan}, r"0\.weight: expected a finite loss"),
        ({"loss": lambda m, x: m[0](x).sum(), "order": "first"}, r"1\.weight: the loss does not"),
    ],
)
def test_rejects(options, message):
    model = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 4))
    before = bits(model)
    defaults = {"batches": [torch.randn(3, 4)], "loss": lambda m, x: m(x).sum(), "kept": 0.5}
    with pytest.raises(ValueError, match=message):
        ecoflap_budgets(model, **(defaults | options))
    assert_untouched(model, before)


def test_rejects_a_loss_that_is_no_tensor():
    with pytest.raises(TypeError, match="got float"):
        layer_scores(nn.Linear(2, 2), [torch.ones(1, 2)], lambda m, x: float(m(x).sum()))
