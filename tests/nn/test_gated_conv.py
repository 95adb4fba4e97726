"""GatedConv2d, GatedLinear, GatedBlock and gate_model_ against the plain layers and autograd."""

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
)
from tests.nn.gated_layers import both_kinds, every_conv
from tests.tolerance import assert_accurate


def mixed(layer, seed=1):
    """Logits of both signs; dynamic gates that differ among samples."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in layer.gate.parameters():
            noise = torch.randn(parameter.shape, generator=generator)
            parameter.copy_(noise * (1 if parameter.dim() == 1 else 3))
    return layer


def truth(layer, x):
    """The definition in plain torch: the dense convolution, then a product with 0 or 1 for each channel."""
    conv = F.conv2d if layer.padding_mode == "zeros" else None
    plain = layer.to_dense()
    y = conv(x, layer.weight, layer.bias, *geometry(layer)) if conv else plain(x)
    gates = (layer.gate.logits(x).sigmoid() > 0.5).to(y.dtype)
    return y * (gates if gates.dim() == 2 else gates.expand(len(y), -1))[:, :, None, None]


def geometry(layer):
    return layer.stride, layer.padding, layer.dilation, layer.groups


# ---- forward ----
@every_conv
@both_kinds
def test_all_open_is_the_dense_convolution_bitwise(options, dynamic):
    conv = nn.Conv2d(4, 8, **options)
    layer = GatedConv2d.from_conv(conv, dynamic=dynamic)
    for x in (torch.randn(3, 4, 9, 8), torch.randn(1, 4, 7, 7), torch.randn(4, 7, 6)):
        assert torch.equal(layer(x), conv(x))
    x = torch.randn(2, 4, 9, 8, requires_grad=True)
    weights = [x, *conv.parameters()]
    ours = torch.autograd.grad(layer(x).square().sum(), weights)
    theirs = torch.autograd.grad(conv(x).square().sum(), weights)
    assert all(torch.equal(a, b) for a, b in zip(ours, theirs, strict=True))


@every_conv
@both_kinds
def test_closed_channels_are_zero_and_open_ones_dense(options, dynamic):
    layer = mixed(GatedConv2d(4, 8, dynamic=dynamic, **options))
    x = torch.randn(5, 4, 9, 8)
    want = truth(layer, x)
    assert torch.equal(layer(x), want)
    shares = layer.gate.last.mean().item()
    assert 0 < shares < 1  # the test saw both


@both_kinds
def test_channels_last_stays(dynamic):
    layer = mixed(GatedConv2d(4, 8, 3, dynamic=dynamic)).to(memory_format=torch.channels_last)
    x = torch.randn(2, 4, 6, 6).to(memory_format=torch.channels_last)
    y = layer(x)
    assert y.is_contiguous(memory_format=torch.channels_last)
    torch.testing.assert_close(y, layer(x.contiguous()), rtol=1e-5, atol=1e-5)
    y.sum().backward()
    assert layer.weight.grad is not None


@both_kinds
def test_autocast(dynamic):
    layer = mixed(GatedConv2d(4, 8, 3, dynamic=dynamic))
    x = torch.randn(3, 4, 6, 6)
    with torch.autocast("cpu", torch.bfloat16):
        y = layer(x)
        dense = layer.to_dense()(x)
    gates = layer.gate.last.detach().expand(3, -1)[:, :, None, None]
    assert y.dtype == torch.bfloat16 and torch.equal(y, dense * gates.bfloat16())
    y.float().square().sum().backward()
    for name, parameter in layer.named_parameters():
        assert parameter.grad is not None and parameter.grad.dtype == torch.float32, name


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float64])
@both_kinds
def test_whole_model_in_another_dtype(dtype, dynamic):
    layer = GatedConv2d(4, 8, 3, dynamic=dynamic).to(dtype)
    y = layer(torch.randn(2, 4, 5, 5, dtype=dtype))
    assert y.dtype == dtype
    y.sum().backward()


def test_empty_batch():
    layer = GatedConv2d(4, 8, 3)
    assert layer(torch.zeros(0, 4, 5, 5)).shape == (0, 8, 3, 3) and layer.gate.seen == 0


# ---- gradients ----
@every_conv
@both_kinds
@pytest.mark.parametrize("ste", ["sigmoid", "identity"])
def test_gradients_against_autograd_of_the_surrogate(options, dynamic, ste):
    """Surrogate: the same layer with g = constant 0/1 + (s(z) - s(z) detached), written with plain products."""
    layer = mixed(GatedConv2d(4, 8, dynamic=dynamic, ste=ste, **options)).double()
    x = torch.randn(3, 4, 7, 6, dtype=torch.float64, requires_grad=True)
    wanted = [x, *layer.parameters()]
    ours = torch.autograd.grad(layer(x).sin().sum(), wanted)
    y = layer.to_dense()(x)
    z = layer.gate.logits(x)
    p = z.sigmoid()
    hard = (p > 0.5).double().requires_grad_()  # a leaf: its gradient is dL/dg
    spread = hard if dynamic else hard.expand(3, -1)
    loss = (y * spread[:, :, None, None]).sin().sum()
    (dg,) = torch.autograd.grad(loss, hard, retain_graph=True)
    dz = dg * (p * (1 - p) if ste == "sigmoid" else 1.0)
    theirs = torch.autograd.grad(
        [loss, z], wanted, [torch.ones_like(loss), dz.detach()], allow_unused=True
    )
    for got, want in zip(ours, theirs, strict=True):
        torch.testing.assert_close(got, want, rtol=1e-10, atol=1e-12)


def test_the_gate_gradient_in_float32_is_as_good_as_torch():
    layer = GatedConv2d(4, 8, 3)
    x, dy = torch.randn(3, 4, 20, 20), torch.randn(3, 8, 18, 18)
    layer(x).backward(dy)

    def gradient(dtype):
        y = F.conv2d(x.to(dtype), layer.weight.to(dtype), layer.bias.to(dtype))
        p = layer.gate.theta.detach().to(dtype).sigmoid()
        return ((y * dy.to(dtype)).sum((0, 2, 3)) * p * (1 - p)).detach()

    assert_accurate(layer.gate.theta.grad, gradient(torch.float64), gradient(torch.float32))


def test_a_closed_gate_can_open_again():
    layer = GatedConv2d(1, 1, 1, bias=False, gate_init=-0.5)
    optimizer = torch.optim.SGD(layer.gate.parameters(), lr=1.0)
    x = torch.ones(2, 1, 4, 4)
    target = layer.to_dense()(x).detach()
    assert layer(x).abs().max() == 0
    for _ in range(20):
        optimizer.zero_grad()
        ((layer(x) - target) / target).square().mean().backward()
        optimizer.step()
    assert torch.equal(layer(x), target)


# ---- constructors, saving ----
@every_conv
def test_same_constructor_and_initialisation(options):
    torch.manual_seed(3)
    conv = nn.Conv2d(4, 8, **options)
    torch.manual_seed(3)
    layer = GatedConv2d(4, 8, **options)
    assert torch.equal(layer.weight, conv.weight)
    assert layer.extra_repr() == conv.extra_repr() + ", gate=static"


def test_from_conv_shares_everything_and_to_dense_gives_it_back():
    conv = nn.Conv2d(3, 4, 3).eval()
    calls = []
    conv.register_forward_hook(lambda *_: calls.append(1))
    layer = GatedConv2d.from_conv(conv, dynamic=True, hidden=5, ste="identity", gate_init=1.0)
    assert layer.weight is conv.weight and layer.bias is conv.bias and not layer.gate.training
    assert layer.gate.hidden_weight.shape == (5, 3) and layer.gate.ste == "identity"
    layer(torch.zeros(1, 3, 5, 5))
    assert calls == [1] and "gate" not in conv._modules and not hasattr(conv, "positions")
    plain = layer.to_dense()
    assert type(plain) is nn.Conv2d and plain.weight is conv.weight and "gate" in layer._modules
    assert plain.state_dict().keys() == {"weight", "bias"}


def test_from_conv_refuses():
    with pytest.raises(TypeError, match=r"expected an nn.Conv2d, got Linear"):
        GatedConv2d.from_conv(nn.Linear(2, 2))
    with pytest.raises(TypeError, match=r"expected an nn.Conv2d, got GatedConv2d"):
        GatedConv2d.from_conv(GatedConv2d(1, 1, 1))
    with pytest.raises(TypeError, match=r"expected gate options in .*, got 'width'"):
        GatedConv2d.from_conv(nn.Conv2d(1, 1, 1), width=3)
    with pytest.raises(TypeError, match=r"expected an nn.Linear, got Conv2d"):
        GatedLinear.from_linear(nn.Conv2d(1, 1, 1))


@both_kinds
def test_a_plain_checkpoint_loads_strictly(dynamic):
    plain = nn.Sequential(nn.Conv2d(3, 4, 3), nn.Linear(2, 5))
    ours = nn.Sequential(
        GatedConv2d(3, 4, 3, dynamic=dynamic, gate_init=0.7), GatedLinear(2, 5, dynamic=dynamic)
    )
    before = copy.deepcopy(ours[0].gate.state_dict())
    result = ours.load_state_dict(plain.state_dict(), strict=True)
    assert result.missing_keys == [] and result.unexpected_keys == []
    assert torch.equal(ours[0].weight, plain[0].weight)
    assert torch.equal(ours[1].weight, plain[1].weight)
    after = ours[0].gate.state_dict()
    assert all(torch.equal(before[key], after[key]) for key in before)
    del (state := plain.state_dict())["0.weight"]
    with pytest.raises(RuntimeError, match=r'Missing key\(s\) in state_dict: "0.weight"'):
        ours.load_state_dict(state)


@both_kinds
def test_state_dict_round_trip(dynamic):
    layer, other = (
        mixed(GatedConv2d(3, 4, 3, dynamic=dynamic)),
        GatedConv2d(3, 4, 3, dynamic=dynamic),
    )
    x = torch.randn(6, 3, 5, 5)
    layer(x)
    layer.gate.freeze()
    other.load_state_dict(layer.state_dict())
    assert torch.equal(other(x), layer(x)) and torch.equal(other.gate.opened, layer.gate.opened)
    broken = {k: v for k, v in layer.state_dict().items() if k != "gate.seen"}
    with pytest.raises(RuntimeError, match=r'Missing key\(s\) in state_dict: "gate.seen"'):
        other.load_state_dict(broken)


def test_deepcopy_after_a_forward():
    layer = mixed(GatedConv2d(3, 4, 3, dynamic=True))
    x = torch.randn(2, 3, 5, 5)
    assert torch.equal(copy.deepcopy(layer)(x), layer(x))
    assert torch.equal(copy.deepcopy(layer)(x), layer(x))


# ---- GatedLinear ----
@both_kinds
@pytest.mark.parametrize("shape", [(6,), (3, 6), (3, 5, 6), (2, 3, 5, 6)])
def test_gated_linear(dynamic, shape):
    linear = nn.Linear(6, 9)
    layer = GatedLinear.from_linear(linear, dynamic=dynamic)
    x = torch.randn(shape)
    assert torch.equal(layer(x), linear(x))
    mixed(layer)
    flat = x.view(1, 1, 6) if len(shape) == 1 else x.reshape(shape[0], -1, 6)
    gates = (layer.gate.logits(flat.transpose(1, 2)).sigmoid() > 0.5).float()
    want = linear(flat) * (gates[:, None] if dynamic else gates)
    assert torch.equal(layer(x), want.view(*shape[:-1], 9)) and 0 < gates.mean() < 1


def test_gated_linear_gradients():
    layer = mixed(GatedLinear(6, 9, dynamic=True)).double()
    x = torch.randn(2, 5, 6, dtype=torch.float64)
    layer(x).sin().sum().backward()
    z = layer.gate.logits(x.transpose(1, 2))
    p = z.sigmoid()
    hard = (p > 0.5).double().requires_grad_()
    (F.linear(x, layer.weight, layer.bias) * hard[:, None]).sin().sum().backward()
    want = (hard.grad * p * (1 - p)).sum(0)
    torch.testing.assert_close(layer.gate.out_bias.grad, want)


# ---- GatedBlock ----
@both_kinds
def test_gated_block(dynamic):
    branch = nn.Sequential(nn.Conv2d(3, 3, 3, padding=1), nn.BatchNorm2d(3)).eval()
    block = GatedBlock(branch, nn.Conv2d(3, 3, 1), 3 if dynamic else None)
    x = torch.randn(5, 3, 6, 6)
    assert torch.equal(block(x), block.shortcut(x) + branch(x))
    if dynamic:
        mixed(block)
        block.gate.out_bias.data.zero_()
    else:
        block.gate.theta.data.fill_(-1.0)
    y = block(x)
    gates = block.gate.last.detach().expand(5, 1).view(5)
    for b in range(5):
        want = block.shortcut(x[b : b + 1]) + gates[b] * branch(x[b : b + 1])
        torch.testing.assert_close(y[b : b + 1], want)
    assert not dynamic or 0 < gates.mean() < 1
    y.square().sum().backward()
    assert all(p.grad is not None for p in block.gate.parameters())


# ---- torch.compile ----
def compared(got, want, model, eager):
    """The same loss, gradients and counters."""
    torch.testing.assert_close(got, want)
    for (name, a), b in zip(model.named_parameters(), eager.parameters(), strict=True):
        torch.testing.assert_close(a.grad, b.grad, msg=name)
    for mine, theirs in zip(model.buffers(), eager.buffers(), strict=True):
        assert torch.equal(mine, theirs) or mine.is_floating_point()


def losses(model):
    return polarization_loss(model) + budget_loss(model, 0.3, "flops")


def test_compiled_whole_and_losses_outside():
    """Layers of every kind in one graph; the losses read the gates that the graph leaves behind."""
    model = nn.Sequential(
        mixed(GatedConv2d(3, 4, 3, padding=1)),
        mixed(GatedConv2d(4, 4, 3, padding=1, dynamic=True)),
        nn.BatchNorm2d(4),
        GatedBlock(GatedConv2d(4, 4, 1)),
        GatedBlock(nn.Conv2d(4, 4, 1), in_channels=4),
        nn.Flatten(2),
        GatedLinear(16, 5),
        GatedLinear(5, 5, dynamic=True),
    )
    eager, x = copy.deepcopy(model), torch.randn(6, 3, 4, 4)
    want = eager(x).square().mean() + losses(eager)
    want.backward()
    torch._dynamo.reset()
    compiled = torch.compile(model, fullgraph=True, backend="aot_eager")
    got = compiled(x).square().mean() + losses(model)
    got.backward()
    compared(got, want, model, eager)
    assert model[0].gate.seen == 6


def test_compiled_whole_with_losses_inside():
    model = nn.Sequential(
        mixed(GatedConv2d(3, 4, 1, dynamic=True)), GatedBlock(GatedConv2d(4, 4, 1))
    )
    eager, x = copy.deepcopy(model), torch.randn(6, 3, 4, 4)

    def step(model):
        return model(x).square().mean() + losses(model)

    want = step(eager)
    want.backward()
    torch._dynamo.reset()
    got = torch.compile(step, fullgraph=True, backend="aot_eager")(model)
    got.backward()
    compared(got, want, model, eager)


def test_compiled_at_several_sizes():
    torch._dynamo.reset()
    layer = mixed(GatedConv2d(3, 4, 3, dynamic=True))
    compiled = torch.compile(layer, fullgraph=True, backend="eager")
    for batch, size in [(2, 6), (3, 7), (5, 9), (1, 5)]:
        x = torch.randn(batch, 3, size, size)
        torch.testing.assert_close(compiled(x), layer(x))
        compiled(x)
        assert layer.cost("flops") == 2 * 27 * (size - 2) ** 2
