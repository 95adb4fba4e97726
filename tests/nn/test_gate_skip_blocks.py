"""skip_closed of whole blocks, with the losses, and where code is compiled, exported or traced."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from evoprune_kernels.nn import (
    GatedBlock,
    GatedConv2d,
    GatedLinear,
    budget_loss,
    polarization_loss,
    skipping,
)
from tests.nn.gated_layers import both_kinds, closed_layer, unskipped


@pytest.fixture(autouse=True)
def _layers_of_the_tests_are_small(monkeypatch):
    monkeypatch.setattr(skipping, "LEAST_CLOSED", 1)


# ---- GatedBlock ----
def block(dynamic=False, inner=False, shortcut=None):
    conv = GatedConv2d(3, 3, 3, padding=1, dynamic=True) if inner else nn.Conv2d(3, 3, 3, padding=1)
    branch = nn.Sequential(conv, nn.BatchNorm2d(3), nn.ReLU())
    found = GatedBlock(branch, shortcut, 3 if dynamic else None, skip_closed=True)
    found(torch.randn(2, 3, 6, 6))
    found.zero_grad()
    bias = found.gate.out_bias if dynamic else found.gate.theta
    bias.data.fill_(-1e3)
    return found


@both_kinds
@pytest.mark.parametrize("shortcut", [None, nn.Conv2d(3, 3, 1)], ids=["identity", "conv"])
def test_a_closed_block_is_its_shortcut(dynamic, shortcut):
    layer = block(dynamic, shortcut=copy.deepcopy(shortcut))
    other, calls = unskipped(layer), []
    layer.branch.register_forward_hook(lambda *_: calls.append(1))
    before = layer.branch[1].running_mean.clone()
    x = torch.randn(4, 3, 6, 6, requires_grad=True)
    y = layer(x)
    assert torch.equal(y, other(x)) and calls == [] and y is not x
    assert torch.equal(layer.branch[1].running_mean, before) and layer.gate.seen == 6
    y.sin().sum().backward()
    (wanted,) = torch.autograd.grad(other(x).sin().sum(), x)
    torch.testing.assert_close(x.grad, wanted)
    assert all(p.grad is None for p in layer.branch.parameters())
    assert all(p.grad is None for p in layer.gate.parameters())
    F.relu(y.detach(), inplace=True)
    assert (x < 0).any()  # the input is not the output


def test_a_block_that_is_open_for_one_sample_is_run():
    layer = block(dynamic=True)
    with torch.no_grad():
        layer.gate.hidden_weight.fill_(1.0)
        layer.gate.hidden_bias.zero_()
        layer.gate.out_weight.fill_(1.0)
        layer.gate.out_bias.fill_(-1.0)
    x = torch.randn(3, 3, 6, 6)
    x[1] += 5
    x[[0, 2]] -= 5
    other = unskipped(layer)
    assert torch.equal(layer(x), other(x)) and layer.gate.last.flatten().tolist() == [0, 1, 0]


def test_the_losses_live_with_a_skipped_block():
    """Gates inside keep the values of their last batch, without its graph."""
    model = nn.Sequential(block(inner=True))
    model[0].gate.theta.data.fill_(-0.1)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.5)
    for step in range(8):
        optimizer.zero_grad()
        y = model(torch.randn(2, 3, 6, 6))
        loss = y.square().mean() + polarization_loss(model) + 4 * budget_loss(model, 1.0, "flops")
        loss.backward()
        optimizer.step()
        if step == 0:
            assert model[0].branch[0].weight.grad is None
    assert model[0].gate.last == 1  # the budget opened it


def test_a_branch_is_run_once_for_the_losses():
    layer = GatedBlock(nn.Conv2d(3, 3, 3, padding=1), gate_init=-1.0, skip_closed=True)
    x, calls = torch.randn(2, 3, 4, 4), []
    layer.branch.register_forward_hook(lambda *_: calls.append(1))
    for _ in range(3):
        assert torch.equal(layer(x), x)
    assert calls == [1] and budget_loss(layer, 0.5, "flops").item() == 0.5


# ---- torch.compile, torch.export ----
def small_model():
    return nn.Sequential(
        closed_layer(GatedConv2d, 3, 8, 3, padding=1),
        closed_layer(GatedConv2d, 8, 8, 3, padding=1, dynamic=True),
        block_of_eight(),
        nn.Flatten(2),
        closed_layer(GatedLinear, 16, 8),
    )


def block_of_eight():
    found = GatedBlock(nn.Conv2d(8, 8, 1), skip_closed=True, gate_init=-1.0)
    found(torch.zeros(1, 8, 2, 2))
    return found


def test_compiled_whole():
    """Everything is computed: no size depends on data, and the gates of closed channels have their gradient."""
    model = small_model()
    other, x = unskipped(model), torch.randn(6, 3, 4, 4)
    wanted = other(x)
    wanted.square().mean().backward()
    torch._dynamo.reset()
    y = torch.compile(model, fullgraph=True, backend="eager")(x)
    torch.testing.assert_close(y, wanted)
    torch.testing.assert_close(model(x), wanted)  # as it does when it skips
    y.square().mean().backward()
    for (name, mine), theirs in zip(model.named_parameters(), other.parameters(), strict=True):
        torch.testing.assert_close(mine.grad, theirs.grad, msg=name)


def test_exported():
    model, x = small_model().eval(), torch.randn(2, 3, 4, 4)
    program = torch.export.export(model, (x,), strict=False)
    torch.testing.assert_close(program.module()(x), model(x))
    shapes = {
        tuple(node.meta["val"].shape) for node in program.graph.nodes if "conv2d" in node.name
    }
    assert shapes == {(2, 8, 4, 4)}


def test_traced():
    layer, x = closed_layer(GatedConv2d, 3, 8, 3).eval(), torch.randn(2, 3, 4, 4)
    traced = torch.jit.trace(layer, x, check_trace=False)
    torch.testing.assert_close(traced(x), layer(x))
    layer.gate.theta.data.fill_(1.0)  # the trace does not keep the old choice of channels
    torch.testing.assert_close(traced(x), layer(x))
    assert GatedConv2d(3, 8, 3, skip_closed=True, device="meta")(x.to("meta")).shape == (2, 8, 2, 2)
