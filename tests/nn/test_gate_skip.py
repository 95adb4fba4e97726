"""skip_closed: values and gradients of the layers that compute everything, but for the gates of closed channels."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn

from evoprune_kernels.nn import (
    GatedBlock,
    GatedConv2d,
    GatedLinear,
    budget_loss,
    compact,
    gate_model_,
    skipping,
)
from tests.nn.gated_layers import (
    CLOSED,
    both_kinds,
    closed_layer,
    every_conv,
    never_open,
    unskipped,
)
from tests.tolerance import assert_accurate


@pytest.fixture(autouse=True)
def _layers_of_the_tests_are_small(monkeypatch):
    monkeypatch.setattr(skipping, "LEAST_CLOSED", 1)


def truth(layer, x, dy):
    """Plain torch: the output, and the gradients of the input and of every Parameter in their order.

    The convolution times 0 or 1; the straight-through gradient, which is cut where a channel is skipped.
    """
    layer, x = copy.deepcopy(layer).to(x.dtype), x.detach().clone().requires_grad_()
    z = layer.gate.logits(x)
    p = z.sigmoid()
    gates = (p > 0.5).to(x.dtype).requires_grad_()  # a leaf: its gradient is dL/dg
    spread = gates if gates.dim() == 2 else gates.expand(len(x), -1)
    y, dy = layer.to_dense()(x) * spread[:, :, None, None], dy.to(x.dtype)
    (dg,) = torch.autograd.grad(y, gates, dy, retain_graph=True)
    dz = dg * p * (1 - p)
    if layer.groups == 1:
        dz = dz.masked_fill(never_open(gates), 0.0)
    wanted = [x, *layer.parameters()]
    return y, torch.autograd.grad([y, z], wanted, [dy, dz.detach()], allow_unused=True)


# ---- GatedConv2d ----
@every_conv
@both_kinds
def test_values_and_gradients(options, dynamic):
    """Against fp64 and fp32 of the plain composition."""
    layer = closed_layer(GatedConv2d, 4, 8, dynamic=dynamic, **options)
    x = torch.randn(5, 4, 9, 8, requires_grad=True)
    y = layer(x)
    dy = torch.randn_like(y)
    ours = torch.autograd.grad(y, [x, *layer.parameters()], dy)
    closed = never_open(layer.gate.last)
    assert closed[list(CLOSED)].all() and 0 < layer.gate.last[..., ~closed].mean() <= 1
    true_y, true = truth(layer, x.double(), dy)
    same_y, same = truth(layer, x, dy)
    assert_accurate(y, true_y, same_y)
    assert (y[:, closed] == 0).all()
    for mine, best, torchs in zip(ours, true, same, strict=True):
        assert_accurate(mine, best, torchs)
    assert (ours[1][closed] == 0).all()
    if not dynamic and layer.groups == 1:
        assert ((ours[-1] == 0) == closed).all()  # the logits


@both_kinds
def test_all_open_is_bitwise_dense_and_gathers_nothing(dynamic, monkeypatch):
    monkeypatch.setattr(skipping, "SCATTER", None)
    conv = nn.Conv2d(4, 8, 3)
    layer = GatedConv2d.from_conv(conv, dynamic=dynamic, skip_closed=True)
    for x in (torch.randn(3, 4, 9, 8), torch.randn(4, 7, 6)):
        x.requires_grad_()
        y, wanted = layer(x), conv(x)
        assert torch.equal(y, wanted)
        ours = torch.autograd.grad(y.square().sum(), [x, *conv.parameters()])
        theirs = torch.autograd.grad(wanted.square().sum(), [x, *conv.parameters()])
        assert all(torch.equal(a, b) for a, b in zip(ours, theirs, strict=True))


@both_kinds
def test_all_closed(dynamic):
    """Zeros with zero gradients; the first channel is computed alone, so that its gate has a gradient."""
    layer = closed_layer(GatedConv2d, 4, 8, 3, dynamic=dynamic, closed=range(8))
    x = torch.randn(2, 4, 6, 6, requires_grad=True)
    y = layer(x)
    assert y.shape == (2, 8, 4, 4) and y.eq(0).all() and layer.positions == 16
    grads = torch.autograd.grad((y + 1).square().sum(), [x, layer.weight, layer.bias])
    assert all(g is not None and g.eq(0).all() for g in grads)
    if not dynamic:
        other = unskipped(layer)
        (other(x) + 1).square().sum().backward()
        (layer(x) + 1).square().sum().backward()
        wanted = torch.where(torch.arange(8) == 0, other.gate.theta.grad, 0.0)
        torch.testing.assert_close(layer.gate.theta.grad, wanted)


def test_few_closed_channels_are_computed():
    """Below the threshold nothing is gathered and every gate has its gradient."""
    layer = closed_layer(GatedConv2d, 4, 17, 3, closed=(1, 2))
    assert skipping.LEAST_SHARE * 17 > 2
    other, x = unskipped(layer), torch.randn(2, 4, 6, 6)
    y = layer(x)
    torch.testing.assert_close(y, other(x))
    assert y[:, 1:3].eq(0).all()
    y.sin().sum().backward()
    other(x).sin().sum().backward()
    torch.testing.assert_close(layer.gate.theta.grad, other.gate.theta.grad)
    assert (layer.gate.theta.grad != 0).all()


@pytest.mark.parametrize(
    "closed, computed", [(0, None), (1, None), (2, 14), (3, 13), (15, 1), (16, 1)]
)
def test_which_channels_are_computed(closed, computed):
    gates = (torch.arange(16) >= closed).float()
    index = skipping.open_channels(gates)
    wanted = None if computed is None else [c for c in range(16) if c >= min(closed, 15)]
    if closed == 16:
        wanted = [0]
    assert (index.tolist() if index is not None else None) == wanted
    assert (None if index is None else len(index)) == computed
    of_samples = torch.stack([gates, torch.zeros(16)])  # open for some sample
    again = skipping.open_channels(of_samples)
    assert (again is None) == (index is None) and (again is None or torch.equal(again, index))


@pytest.mark.parametrize("channels, closed", [(8, 7), (16, 7), (16, 8), (80, 9), (80, 10)])
def test_the_threshold(channels, closed, monkeypatch):
    monkeypatch.undo()
    index = skipping.open_channels((torch.arange(channels) >= closed).float())
    assert (index is not None) == (closed in (8, 10))


@both_kinds
def test_nan_in_a_gate_is_noticed(dynamic):
    layer = closed_layer(GatedConv2d, 4, 8, 3, dynamic=dynamic)
    (layer.gate.out_bias if dynamic else layer.gate.theta).data[2] = float("nan")
    y = layer(torch.randn(2, 4, 6, 6))
    assert y[:, 2].isnan().all() and y[:, list(CLOSED)].eq(0).all()


@both_kinds
def test_channels_last_stays(dynamic):
    layer = closed_layer(GatedConv2d, 4, 8, 3, dynamic=dynamic)
    x = torch.randn(2, 4, 6, 6)
    wanted = layer(x)
    layer.to(memory_format=torch.channels_last)
    last = x.to(memory_format=torch.channels_last).requires_grad_()
    y = layer(last)
    assert y.is_contiguous(memory_format=torch.channels_last)
    torch.testing.assert_close(y, wanted)
    y.square().sum().backward()
    other, plain = unskipped(layer), x.clone().requires_grad_()
    other(plain).square().sum().backward()
    torch.testing.assert_close(last.grad, plain.grad)


@both_kinds
def test_autocast(dynamic):
    layer = closed_layer(GatedConv2d, 4, 8, 3, dynamic=dynamic)
    other, x = unskipped(layer), torch.randn(3, 4, 6, 6)
    with torch.autocast("cpu", torch.bfloat16):
        y, wanted = layer(x), other(x)
    assert y.dtype == torch.bfloat16
    torch.testing.assert_close(y, wanted)
    y.float().square().sum().backward()
    wanted.float().square().sum().backward()
    for name in ("weight", "bias"):
        mine, theirs = layer.get_parameter(name).grad, other.get_parameter(name).grad
        assert mine.dtype == torch.float32
        torch.testing.assert_close(mine, theirs, rtol=2e-2, atol=2e-2 * theirs.abs().max().item())
    if (
        not dynamic
    ):  # the gradient of an open gate comes from that of its filter, rounded to bfloat16
        mine, theirs = layer.gate.theta.grad, other.gate.theta.grad.clone()
        theirs[list(CLOSED)] = 0
        torch.testing.assert_close(mine, theirs, rtol=2e-2, atol=2e-2 * theirs.abs().max().item())


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float64])
@both_kinds
def test_other_dtypes(dtype, dynamic):
    layer = closed_layer(GatedConv2d, 4, 8, 3, dynamic=dynamic).to(dtype)
    x = torch.randn(2, 4, 5, 5, dtype=dtype)
    y = layer(x)
    assert y.dtype == dtype
    torch.testing.assert_close(y, unskipped(layer)(x))
    y.sum().backward()


@both_kinds
def test_three_dimensions_and_an_empty_batch(dynamic):
    layer = closed_layer(GatedConv2d, 4, 8, 3, dynamic=dynamic)
    x = torch.randn(4, 6, 5)
    torch.testing.assert_close(layer(x), unskipped(layer)(x))
    assert layer(torch.zeros(0, 4, 5, 5)).shape == (0, 8, 3, 3)


def test_frozen_gates():
    layer = closed_layer(GatedConv2d, 4, 8, 3, dynamic=True)
    decision = torch.tensor([True, False, True, False, True, True, False, False])
    layer.gate.freeze(decision)
    other, x = unskipped(layer), torch.randn(2, 4, 6, 6, requires_grad=True)
    y = layer(x)
    torch.testing.assert_close(y, other(x))
    (ours,) = torch.autograd.grad(y.sin().sum(), x)
    (theirs,) = torch.autograd.grad(other(x).sin().sum(), x)
    torch.testing.assert_close(ours, theirs)
    assert layer.gate.out_bias.grad is None


def test_second_derivatives():
    layer = closed_layer(GatedConv2d, 2, 8, 2).double()
    x = torch.randn(1, 2, 4, 3, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradgradcheck(
        lambda x, w: composed_penalty(layer, x, w), (x, layer.weight)
    )


def composed_penalty(layer, x, weight):
    """The layer's output as a function of its weight too."""
    return torch.func.functional_call(layer, {"weight": weight}, (x,)).sin()


def test_a_skipped_gate_opens_by_the_budget_alone():
    layer = closed_layer(GatedConv2d, 1, 4, 1, closed=(2, 3))
    x = torch.ones(2, 1, 4, 4)
    layer(x).square().sum().backward()
    assert layer.gate.theta.grad[2:].eq(0).all()
    optimizer = torch.optim.SGD([layer.gate.theta], lr=2.0)
    for _ in range(20):
        optimizer.zero_grad()
        layer(x)
        budget_loss(layer, kept=1.0).backward()
        optimizer.step()
    assert (layer(x) != 0).any(0).any(1).any(1).all()


# ---- convolve ----
@both_kinds
def test_convolve_is_the_output_before_the_gates(dynamic):
    layer = closed_layer(GatedConv2d, 4, 8, 3, dynamic=dynamic)
    dense, x = layer.to_dense(), torch.randn(3, 4, 6, 6)
    layer.skip_closed = False
    assert torch.equal(layer.convolve(x), dense(x))
    layer.skip_closed = True
    wanted = dense(x)
    if dynamic:  # unknown gates: all is computed, and nothing is counted twice
        assert torch.equal(layer.convolve(x), wanted)
    gates = layer.gate(x)
    wanted[:, list(CLOSED)] = 0
    torch.testing.assert_close(layer.convolve(x, gates), wanted)
    assert layer.gate.seen == 3
    if not dynamic:
        torch.testing.assert_close(layer.convolve(x), wanted)
        torch.testing.assert_close(layer.convolve(x[0]), wanted[0])
    layer.gate.freeze(torch.arange(8) < 3)
    wanted[:, 3:] = 0
    wanted[:, 1] = dense(x)[:, 1]
    torch.testing.assert_close(layer.convolve(x), wanted)


# ---- options ----
def test_print_says_what_is_computed():
    layer = GatedConv2d(4, 8, 1, skip_closed=True)
    assert layer.extra_repr().endswith("gate=static, skip_closed=True")
    grouped = GatedConv2d(4, 8, 1, groups=4, dynamic=True, skip_closed=True)
    wanted = "gate=dynamic, skip_closed=True (computes all: needs groups=1, got 4)"
    assert grouped.extra_repr().endswith(wanted)
    assert "skip_closed=True" in repr(GatedBlock(nn.Identity(), skip_closed=True))
    assert "skip_closed" not in repr(GatedConv2d(4, 8, 1))


def test_the_option_goes_in_and_out():
    model = nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(), nn.Conv2d(8, 8, 3))
    gate_model_(model, skip_closed=True)
    assert model[0].skip_closed and model[2].skip_closed
    assert not hasattr(model[0].to_dense(), "skip_closed")
    assert GatedLinear.from_linear(nn.Linear(2, 3), skip_closed=True).skip_closed
    model[0].gate.freeze(torch.arange(8) < 3)
    x = torch.randn(2, 3, 8, 8)
    small, _ = compact(model, x)
    assert small[0].out_channels == 3
    torch.testing.assert_close(small(x), model(x))


# ---- GatedLinear ----
@both_kinds
@pytest.mark.parametrize("shape", [(6,), (3, 6), (3, 5, 6), (2, 3, 5, 6), (0, 6)])
def test_gated_linear(dynamic, shape):
    layer = closed_layer(GatedLinear, 6, 8, dynamic=dynamic)
    other = unskipped(layer)
    x = torch.randn(shape, requires_grad=True)
    y, wanted = layer(x), other(x)
    torch.testing.assert_close(y, wanted)
    assert y[..., list(CLOSED)].eq(0).all() and layer.positions == other.positions
    dy = torch.randn_like(y)
    dy[..., never_open(layer.gate.last)] = (
        0  # what the gates of closed features get is the difference
    )
    ours = torch.autograd.grad(y, [x, *layer.parameters()], dy)
    theirs = torch.autograd.grad(wanted, [x, *other.parameters()], dy)
    for mine, want in zip(ours, theirs, strict=True):
        torch.testing.assert_close(mine, want)
    assert ours[1][list(CLOSED)].eq(0).all()


def test_gates_of_closed_features_get_no_gradient():
    layer = closed_layer(GatedLinear, 6, 8)
    (layer(torch.randn(3, 6)) + 1).square().sum().backward()
    assert layer.gate.theta.grad[list(CLOSED)].eq(0).all()
    assert layer.gate.theta.grad[[0, 2, 3, 5, 7]].ne(0).all()
