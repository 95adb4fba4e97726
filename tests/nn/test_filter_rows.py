"""Filters are moved in the memory order of their weight."""

import pytest
import torch

from evoprune_kernels.nn import GatedConv2d, SSPropConv2d, skipping
from evoprune_kernels.nn.filter_rows import scatter_filters, select_filters

INDEX = torch.tensor([0, 2, 3])
WEIGHTS = {
    "contiguous": lambda: torch.randn(5, 4, 3, 3),
    "channels_last": lambda: torch.randn(5, 4, 3, 3).contiguous(memory_format=torch.channels_last),
    "1x1": lambda: torch.randn(5, 4, 1, 1),
    "depthwise": lambda: torch.randn(5, 1, 3, 3).contiguous(memory_format=torch.channels_last),
    "strided": lambda: torch.randn(5, 8, 3, 3)[:, ::2],
    "linear": lambda: torch.randn(5, 4),
    "conv1d": lambda: torch.randn(5, 4, 3),
    "empty": lambda: torch.randn(5, 0, 3, 3),
}


def channels_last(t):
    return t.is_contiguous(memory_format=torch.channels_last)


@pytest.mark.parametrize("name", WEIGHTS)
@pytest.mark.parametrize("index", [INDEX, INDEX[:0], torch.arange(5)], ids=["some", "none", "all"])
def test_values_and_gradient(name, index):
    weight = WEIGHTS[name]().requires_grad_()
    rows = select_filters(weight, index)
    assert torch.equal(rows, weight[index])
    grad = torch.randn_like(rows)
    (found,) = torch.autograd.grad(rows, weight, grad)
    true = torch.zeros_like(weight)
    true[index] = grad
    assert torch.equal(found, true)
    assert torch.equal(scatter_filters(grad, index, weight.detach()), true)


def test_memory_order_stays():
    weight = WEIGHTS["channels_last"]().requires_grad_()
    rows = select_filters(weight, INDEX)
    assert channels_last(rows) and not rows.is_contiguous()
    grad = torch.randn_like(rows)
    (found,) = torch.autograd.grad(rows, weight, grad)
    assert found.stride() == weight.stride()
    assert scatter_filters(grad, INDEX, weight).stride() == weight.stride()
    assert select_filters(WEIGHTS["contiguous"](), INDEX).is_contiguous()


@pytest.fixture
def convolved(monkeypatch):
    """The memory order of every weight that a convolution gets, forward or backward."""
    seen = []
    forward, backward = torch.nn.Conv2d._conv_forward, torch.ops.aten.convolution_backward

    def watch(layer, x, weight, bias):
        seen.append(channels_last(weight))
        return forward(layer, x, weight, bias)

    def watch_backward(grad, x, weight, *rest):
        seen.append(channels_last(weight))
        return backward(grad, x, weight, *rest)

    monkeypatch.setattr(torch.nn.Conv2d, "_conv_forward", watch)
    monkeypatch.setattr(torch.ops.aten, "convolution_backward", watch_backward)
    return seen


def test_layers_keep_it(convolved, monkeypatch):
    """What torch would turn back at every step."""
    monkeypatch.setattr(skipping, "LEAST_CLOSED", 1)
    x = torch.randn(2, 4, 6, 6).contiguous(memory_format=torch.channels_last)
    gated = GatedConv2d(4, 8, 3, skip_closed=True).to(memory_format=torch.channels_last)
    with torch.no_grad():
        gated.gate.theta[:4] = -5.0
    gated(x).square().sum().backward()
    sparse = SSPropConv2d(4, 8, 3, kept=0.5).to(memory_format=torch.channels_last)
    sparse(x).square().sum().backward()
    assert len(convolved) == 2 and all(convolved)
    for layer in (gated, sparse):
        assert layer.weight.grad.stride() == layer.weight.stride()
