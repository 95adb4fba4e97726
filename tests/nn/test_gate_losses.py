"""The losses by value and by gradient, against sums written out in plain Python."""

from __future__ import annotations

import math

import pytest
import torch
from torch import nn

from evoprune_kernels.nn import (
    GatedBlock,
    GatedConv2d,
    GatedLinear,
    bn_polarization,
    budget_loss,
    clamp_bn_scales_,
    polarization_loss,
)


def set_logits(gate, logits):
    with torch.no_grad():
        gate.theta.copy_(torch.tensor(logits))


def slope(z):
    p = 1 / (1 + math.exp(-z))
    return p * (1 - p)


def dynamic_layer(biases, slopes):
    """1x1 convolution of one input channel whose gate c is open where ``biases[c] + slopes[c] * relu(mean) > 0``."""
    layer = GatedConv2d(1, len(biases), 1, dynamic=True, hidden=1)
    with torch.no_grad():
        layer.gate.hidden_weight.fill_(1.0)
        layer.gate.hidden_bias.zero_()
        layer.gate.out_weight.copy_(torch.tensor(slopes).view(-1, 1))
        layer.gate.out_bias.copy_(torch.tensor(biases))
    return layer


def samples(*values):
    return torch.tensor(values).view(-1, 1, 1, 1).expand(-1, 1, 2, 2)


# ---- polarization ----
def test_polarization_by_value_and_gradient():
    first, second = dynamic_layer([-1.5, 1.0], [1.0, 0.0]), GatedConv2d(2, 3, 1)
    model = nn.Sequential(first, second)
    set_logits(second.gate, [1.0, -1.0, 2.0])
    model(samples(1.0, 2.0, 3.0, 4.0))  # gate 0 of the first layer: closed, open, open, open
    loss = polarization_loss(model)
    assert loss.item() == pytest.approx(0.75 * 0.25 / 5)
    loss.backward()
    # dR/dg[b, s] = (1 - 2 gbar_s) / (S B), through p (1 - p)
    z = [v - 1.5 for v in (1.0, 2.0, 3.0, 4.0)]
    want = sum((1 - 1.5) / (5 * 4) * slope(v) for v in z)
    assert first.gate.out_bias.grad[0].item() == pytest.approx(want, rel=1e-5)
    for got, logit, g in zip(second.gate.theta.grad.tolist(), [1, -1, 2], [1, 0, 1], strict=True):
        assert got == pytest.approx((1 - 2 * g) / 5 * slope(logit), rel=1e-5)


def test_polarization_is_zero_at_consensus_and_a_quarter_at_a_split():
    layer = dynamic_layer([-1.5], [1.0])
    layer(samples(2.0, 3.0))
    assert polarization_loss(layer).item() == 0.0
    layer(samples(1.0, 3.0))
    assert polarization_loss(layer).item() == 0.25
    layer(samples(1.0))  # one sample always agrees with itself
    assert polarization_loss(layer).item() == 0.0


# ---- budget ----
def test_budget_in_parameters():
    a, b = GatedConv2d(3, 4, 3), GatedConv2d(4, 2, 1, bias=False)
    set_logits(a.gate, [1.0, -1.0, 1.0, -2.0])
    set_logits(b.gate, [0.5, 3.0])
    loss = budget_loss(nn.Sequential(a, nn.ReLU(), b), kept=0.25)  # no forward is needed
    total = 4 * 28 + 2 * 4
    assert loss.item() == pytest.approx((2 * 28 + 2 * 4) / total - 0.25)
    loss.backward()
    for got, logit in zip(a.gate.theta.grad.tolist(), [1.0, -1.0, 1.0, -2.0], strict=True):
        assert got == pytest.approx(28 / total * slope(logit), rel=1e-5)
    below = budget_loss(nn.Sequential(a, b), kept=0.9)
    a.gate.theta.grad = None
    below.backward()
    assert (a.gate.theta.grad < 0).all()


def test_budget_in_flops_of_the_last_forward():
    a, b = GatedConv2d(3, 4, 3, stride=2, padding=1), GatedConv2d(4, 6, 3, groups=2)
    set_logits(a.gate, [1.0, -1.0, -1.0, -1.0])
    model = nn.Sequential(a, b)
    for height, width in [(9, 8), (13, 11)]:
        model(torch.randn(2, 3, height, width))
        ha, wa = (height + 1) // 2, (width + 1) // 2
        cost_a, cost_b = 2 * 27 * ha * wa, 2 * 18 * (ha - 2) * (wa - 2)
        assert (a.cost("flops"), b.cost("flops")) == (cost_a, cost_b)
        want = (cost_a + 6 * cost_b) / (4 * cost_a + 6 * cost_b) - 0.3
        assert budget_loss(model, 0.3, "flops").item() == pytest.approx(abs(want), rel=1e-5)


def test_budget_of_dynamic_gates_is_over_the_batch():
    layer = dynamic_layer([-1.5, 1.0], [1.0, 0.0])
    layer(samples(1.0, 2.0, 3.0, 4.0))
    assert budget_loss(layer, 0.5).item() == pytest.approx((0.75 + 1) / 2 - 0.5)


@pytest.mark.parametrize("by", ["parameters", "flops"])
def test_a_block_closes_its_branch(by):
    inner = GatedConv2d(2, 4, 1)
    outside = nn.Conv2d(2, 2, 1)  # no gate closes it: not counted
    branch = nn.Sequential(inner, nn.Conv2d(4, 2, 3, padding=1, bias=False))
    block = GatedBlock(branch)
    set_logits(inner.gate, [1.0, 1.0, 1.0, -1.0])
    model = nn.Sequential(outside, block)
    model(torch.randn(2, 2, 5, 5))
    costs = {"parameters": (4 * 3, 2 * 36), "flops": (4 * 2 * 2 * 25, 2 * 2 * 36 * 25)}[by]
    want = (0.75 * costs[0] + costs[1]) / sum(costs) - 0.5
    assert budget_loss(model, 0.5, by).item() == pytest.approx(want, rel=1e-6)
    set_logits(block.gate, [-1.0])
    loss = budget_loss(model, 0.5, by)
    assert loss.item() == 0.5
    loss.backward()
    share = (0.75 * costs[0] + costs[1]) / sum(costs)
    assert block.gate.theta.grad.item() == pytest.approx(-share * slope(-1.0), rel=1e-5)


def test_flops_of_a_linear_layer_count_tokens():
    layer = GatedLinear(6, 4)
    layer(torch.randn(3, 7, 6))
    assert layer.cost("flops") == 2 * 6 * 7 and layer.cost() == 7
    layer(torch.randn(3, 6))
    assert layer.cost("flops") == 12


def test_descent_reaches_budget_and_consensus():
    layer = GatedConv2d(2, 16, 1, dynamic=True)
    with torch.no_grad():
        layer.gate.out_bias.copy_(torch.linspace(-0.1, 1.0, 16))
        layer.gate.out_weight.normal_(std=0.2)
    x = torch.randn(8, 2, 3, 3)
    layer(x)
    assert polarization_loss(layer).item() > 0.01 and budget_loss(layer, kept=0.5).item() > 0.15
    for _ in range(100):
        loss = 0.5 * polarization_loss(layer) + budget_loss(layer, kept=0.5)
        grads = torch.autograd.grad(loss, list(layer.gate.parameters()))
        with torch.no_grad():
            for parameter, grad in zip(layer.gate.parameters(), grads, strict=True):
                parameter -= 2.0 * grad
        layer(x)
    assert polarization_loss(layer).item() < 0.01
    assert budget_loss(layer, kept=0.5).item() <= 1 / 16


# ---- batch norm baseline ----
def test_bn_polarization_by_value_and_gradient():
    a, b = nn.BatchNorm2d(2), nn.BatchNorm1d(3)
    values = [0.5, -0.25, 1.0, 0.0, 2.0]
    with torch.no_grad():
        a.weight.copy_(torch.tensor(values[:2]))
        b.weight.copy_(torch.tensor(values[2:]))
    model = nn.Sequential(a, nn.BatchNorm2d(2, affine=False), b)
    loss = bn_polarization(model, t=1.4)
    mean = sum(values) / 5
    want = 1.4 * sum(abs(v) for v in values) - sum(abs(v - mean) for v in values)
    assert loss.item() == pytest.approx(want, rel=1e-6)
    loss.backward()
    sides = [1 if v > mean else -1 for v in values]
    got = a.weight.grad.tolist() + b.weight.grad.tolist()
    for value, grad, side in zip(values, got, sides, strict=True):
        sign = (value > 0) - (value < 0)
        assert grad == pytest.approx(1.4 * sign - side + sum(sides) / 5, abs=1e-6)
    clamp_bn_scales_(model)
    assert a.weight.tolist() + b.weight.tolist() == [0.5, 0.0, 1.0, 0.0, 1.0]


# ---- refusals, dtypes ----
def test_what_is_refused():
    plain, layer = nn.Sequential(nn.Conv2d(1, 1, 1)), GatedConv2d(1, 2, 1)
    for call in (polarization_loss, lambda m: budget_loss(m, 0.5)):
        with pytest.raises(ValueError, match="expected a model with gates, got none in Sequential"):
            call(plain)
    for kept in (0.0, 1.5):
        with pytest.raises(ValueError, match=f"expected 0 < kept <= 1, got {kept}"):
            budget_loss(layer, kept)
    with pytest.raises(ValueError, match="got 'time'"):
        budget_loss(layer, 0.5, "time")
    with pytest.raises(RuntimeError, match="has seen no forward"):
        budget_loss(layer, 0.5, "flops")
    with pytest.raises(RuntimeError, match="no mean before a forward"):
        polarization_loss(GatedConv2d(1, 2, 1, dynamic=True))
    with pytest.raises(ValueError, match="batch norms that have a scale, got none"):
        bn_polarization(plain)
    with pytest.raises(ValueError, match="expected t >= 0, got -1"):
        bn_polarization(nn.BatchNorm2d(1), -1)


@pytest.mark.parametrize(
    "dtype, wide", [(torch.float64, torch.float64), (torch.bfloat16, torch.float32)]
)
def test_dtypes(dtype, wide):
    layer = GatedConv2d(1, 3, 1, dtype=dtype)
    assert polarization_loss(layer).dtype == wide and budget_loss(layer, 0.5).dtype == wide
