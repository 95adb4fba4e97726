"""compact: the same function as the gated model, and exactly the channels gone that may go."""

from __future__ import annotations

import copy
import functools

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from evoprune_kernels.nn import (
    GatedBlock,
    GatedConv2d,
    GatedLinear,
    collect_statistics,
    compaction,
    gate_model_,
    gates_of,
)
from tests.nn.compacted import assert_same, compacted, trained
from tests.nn.gated_models import (
    DenseLayers,
    DenseNet,
    ResNet,
    SqueezeExcite,
    grouped,
    inverted,
    mobilenet,
    resnext,
    vgg,
)

MODELS = [
    *(ResNet, vgg, mobilenet, DenseNet, grouped, DenseLayers, inverted, resnext),
    *(SqueezeExcite, functools.partial(SqueezeExcite, linear=True)),
]


@pytest.mark.parametrize("closed", [0.0, 0.3, 0.7, 1.0])
@pytest.mark.parametrize("build", MODELS)
def test_equal_to_the_gated_model(build, closed):
    model = build().double()
    gate_model_(model)
    trained(model, closed)
    before = copy.deepcopy(model.state_dict())
    small, report = compacted(model, torch.randn(2, 3, 8, 8, dtype=torch.float64))
    x = torch.randn(3, 3, 8, 8, dtype=torch.float64)
    with torch.no_grad():
        want, got = model(x), small(x)
    assert (want - got).abs().max() <= 1e-10 * want.abs().max()
    assert gates_of(small) == {} and not small.training
    assert not any(
        type(m).__module__.endswith(".conv") and "Gated" in type(m).__name__
        for m in small.modules()
    )
    assert all(torch.equal(before[k], v) for k, v in model.state_dict().items())
    ours = {p.data_ptr() for p in small.parameters()}
    assert ours.isdisjoint(p.data_ptr() for p in model.parameters())
    if closed == 0.0:
        assert report.removed == {} and report.parameters[0] == report.parameters[1]
        assert all(torch.equal(v, before[k]) for k, v in small.state_dict().items())
    if closed == 0.7:
        assert report.parameters[1] < report.parameters[0] and report.flops[1] < report.flops[0]


def test_a_chain_loses_exactly_the_closed_channels():
    model = nn.Sequential(GatedConv2d(3, 6, 3), nn.BatchNorm2d(6), nn.SiLU(), nn.Conv2d(6, 4, 3))
    trained(model, 0.0)
    model[0].gate.freeze(torch.tensor([1, 0, 1, 1, 0, 1]).bool())
    small, report = compacted(model, torch.randn(1, 3, 9, 9))
    keep = [0, 2, 3, 5]
    assert torch.equal(small[0].weight, model[0].weight[keep])
    assert torch.equal(small[1].running_var, model[1].running_var[keep])
    assert torch.equal(small[3].weight, model[3].weight[:, keep])
    constants = {c: _after(model[1], model[2], c) for c in (1, 4)}
    for n in range(4):
        want = model[3].bias[n].item()
        want += sum(model[3].weight[n, c].double().sum().item() * k for c, k in constants.items())
        assert small[3].bias[n].item() == pytest.approx(want, rel=1e-5, abs=1e-6)
    assert report.removed == {"0": (2, 6)} and report.kept == {}
    before, after = (3 * 9 + 1) * 6 + 12 + (6 * 9 + 1) * 4, (3 * 9 + 1) * 4 + 8 + (4 * 9 + 1) * 4
    assert report.parameters == (before, after)
    flops = [2 * 49 * 27 * c + 2 * 25 * 9 * c * 4 for c in (6, 4)]
    assert report.flops == tuple(flops) and str(report).startswith("removed channels of 1 layers")
    assert_same(model, small, torch.randn(2, 3, 12, 11))


def _after(norm, activation, c):
    """What a closed channel is behind batch norm and activation: beta - mean * gamma / std, activated."""
    std = (norm.running_var[c].item() + norm.eps) ** 0.5
    k = norm.bias[c].item() - norm.running_mean[c].item() * norm.weight[c].item() / std
    return activation(torch.tensor(k, dtype=torch.float64)).item()


def test_constants_before_zero_padding_are_carried_by_one_channel():
    model = nn.Sequential(
        GatedConv2d(3, 6, 3),
        nn.BatchNorm2d(6),
        nn.Tanh(),
        nn.Conv2d(6, 4, 3, padding=2, bias=False),
    )
    trained(model, 0.0)
    model[0].gate.freeze(torch.tensor([1, 0, 0, 1, 0, 1]).bool())
    small, report = compacted(model, torch.randn(1, 3, 9, 9))
    assert small[0].out_channels == 4 and small[3].bias is None
    assert report.removed == {"0": (2, 6)}
    assert report.kept["0"].startswith("1 channels: ")
    assert_same(model, small, torch.randn(2, 3, 7, 8))  # another size, so other borders


def test_zero_constants_need_no_carrier():
    model = nn.Sequential(GatedConv2d(3, 6, 3), nn.ReLU(), nn.Conv2d(6, 4, 3, padding=1))
    model[0].gate.freeze(torch.arange(6) < 2)
    small, report = compacted(model, torch.randn(1, 3, 9, 9))
    assert small[2].in_channels == 2 and report.kept == {}
    assert torch.equal(small[2].weight, model[2].weight[:, :2])


def test_channels_of_a_sum_leave_together():
    class Sum(nn.Module):
        def __init__(self):
            super().__init__()
            self.a, self.b = GatedConv2d(3, 4, 1), GatedConv2d(3, 4, 1)
            self.c = nn.Conv2d(4, 2, 1)

        def forward(self, x):
            return self.c(F.relu(self.a(x) + self.b(x)))

    model = Sum()
    model.a.gate.freeze(torch.tensor([1, 1, 0, 0]).bool())
    model.b.gate.freeze(torch.tensor([1, 0, 1, 0]).bool())
    small, report = compacted(model, torch.randn(1, 3, 4, 4))
    assert (small.a.out_channels, small.b.out_channels, small.c.in_channels) == (3, 3, 3)
    assert report.removed == {"a": (1, 4), "b": (1, 4)} and set(report.kept) == {"a", "b"}
    assert_same(model, small, torch.randn(2, 3, 5, 5))


def test_closed_blocks_leave_with_everything_in_them():
    def block(inner):
        branch = nn.Sequential(
            GatedConv2d(4, inner, 3, padding=1), nn.ReLU(), nn.Conv2d(inner, 4, 1)
        )
        return GatedBlock(branch)

    model = nn.Sequential(block(6), nn.ReLU(), block(5), GatedBlock(block(3)))
    trained(model, 0.0)
    model[0].gate.freeze(torch.tensor([False]))
    model[3].branch.gate.freeze(torch.tensor([False]))
    model[2].branch[0].gate.freeze(torch.arange(5) < 2)
    x = torch.randn(2, 4, 5, 5)
    model(x)  # hooks have counted positions
    small, report = compacted(model, x)
    assert report.blocks == ("0", "3.branch") and report.removed == {"2.branch.0": (3, 5)}
    assert sum(p.numel() for p in small.parameters()) == 2 * 37 + (2 + 1) * 4
    assert not any(m._forward_hooks for m in small.modules())
    assert_same(model, small, torch.randn(3, 4, 6, 6))


def test_blocks_in_the_shortcut_of_a_closed_block():
    inner = GatedBlock(GatedConv2d(4, 4, 1), nn.Sequential(GatedConv2d(4, 4, 1)))
    model = nn.Sequential(GatedBlock(nn.Conv2d(4, 4, 1), inner), nn.Conv2d(4, 2, 1))
    model[0].gate.freeze(torch.tensor([False]))
    inner.branch.gate.freeze(torch.arange(4) < 2)
    inner.shortcut[0].gate.freeze(torch.arange(4) < 3)
    small, report = compacted(model, torch.randn(1, 4, 3, 3))
    assert report.blocks == ("0",) and small[1].in_channels == 3
    assert type(small[0].branch) is nn.Conv2d and small[0].branch.out_channels == 3
    assert_same(model, small, torch.randn(2, 4, 3, 3))


def test_inside_of_residual_blocks_and_their_sums():
    model = ResNet()
    gate_model_(model)
    trained(model, 0.0)
    with torch.no_grad():
        for module in model.modules():
            if isinstance(module, nn.BatchNorm2d):
                module.bias.zero_()
                module.running_mean.zero_()  # closed channels are 0 behind it
    closed = {
        "conv": [0, 1], "layers.0.conv1": [5], "layers.0.conv2": [1, 2],
        "layers.1.conv1": [0, 3], "layers.1.conv2": [4, 6, 7], "layers.1.down.0": [4, 6], "layers.2.conv2": [6, 8],
    }  # fmt: skip
    for name, gate in gates_of(model).items():
        gate.freeze(torch.tensor([c not in closed.get(name, []) for c in range(gate.channels)]))
    small, report = compacted(model, torch.randn(1, 3, 8, 8))
    assert report.removed == {
        "conv": (1, 8),  # channel 1 is closed in both layers of the sum
        "layers.0.conv1": (1, 8),
        "layers.0.conv2": (1, 8),
        "layers.1.conv1": (2, 12),
        "layers.1.conv2": (1, 12),  # channel 6 in all three
        "layers.1.down.0": (1, 12),
        "layers.2.conv2": (1, 12),
    }
    assert small.fc.in_features == 11
    assert torch.equal(small.fc.weight, model.fc.weight[:, [c for c in range(12) if c != 6]])
    assert_same(model, small, torch.randn(2, 3, 9, 7))


def test_a_layer_that_is_called_twice_stays():
    conv = GatedConv2d(4, 4, 3, padding=1)
    model = nn.Sequential(nn.Conv2d(3, 4, 1), conv, nn.ReLU(), conv)
    conv.gate.freeze(torch.arange(4) < 2)
    small, report = compacted(model, torch.randn(1, 3, 6, 6))
    assert small[1] is small[3] and small[1].out_channels == 4 and report.removed == {}
    assert_same(model, small, torch.randn(2, 3, 6, 6))


def test_gated_linear_and_a_layer_alone():
    model = nn.Sequential(GatedLinear(6, 8), nn.Sigmoid(), nn.Linear(8, 3))
    model[0].gate.freeze(torch.arange(8) % 3 == 0)
    small, _ = compacted(model, torch.randn(4, 6))
    assert (small[0].out_features, small[2].in_features) == (3, 3)
    assert_same(model, small, torch.randn(5, 6))  # sigmoid(0) = 0.5 is in the bias
    alone = GatedConv2d(3, 4, 3)
    alone.gate.freeze(torch.arange(4) < 2)
    small, report = compacted(alone, torch.randn(1, 3, 5, 5))
    assert type(small) is nn.Conv2d and small.out_channels == 4 and report.removed == {}
    assert_same(alone, small, torch.randn(1, 3, 6, 6))


@pytest.mark.parametrize("mode", ["circular", "reflect", "replicate"])
def test_padding_by_repetition_needs_no_carrier(mode):
    behind = nn.Conv2d(6, 4, 3, padding=1, padding_mode=mode)
    model = nn.Sequential(GatedConv2d(3, 6, 3), nn.Sigmoid(), behind)
    model[0].gate.freeze(torch.arange(6) < 2)
    small, report = compacted(model, torch.randn(1, 3, 9, 9))
    assert small[2].in_channels == 2 and report.kept == {}
    assert_same(model, small, torch.randn(2, 3, 8, 9))


class Feedforward(nn.Module):
    def __init__(self):
        super().__init__()
        self.norm, self.up = nn.LayerNorm(6), GatedLinear(6, 16)
        self.act, self.down = nn.GELU(), nn.Linear(16, 6)

    def forward(self, x):
        return x + self.down(self.act(self.up(self.norm(x))))


def test_the_inner_features_of_a_feedforward_leave():
    model = nn.Sequential(Feedforward(), Feedforward())
    model[0].up.gate.freeze(torch.arange(16) % 4 == 0)
    model[1].up.gate.freeze(torch.arange(16) < 0)  # all closed: one stays, a layer needs one
    small, report = compacted(model, torch.randn(2, 6, 6))  # as many tokens as features
    assert report.removed == {"0.up": (12, 16), "1.up": (15, 16)}
    assert small[0].up.weight.shape == (4, 6) and small[0].down.weight.shape == (6, 4)
    assert_same(model, small, torch.randn(3, 5, 6))


def test_a_linear_layer_along_the_width_of_an_image():
    model = nn.Sequential(GatedConv2d(3, 4, 1), nn.ReLU(), nn.Linear(4, 5), nn.Conv2d(4, 2, 1))
    model[0].gate.freeze(torch.arange(4) < 2)
    small, report = compacted(model, torch.randn(1, 3, 4, 4))  # width 4, as many as channels
    assert report.removed == {} and "not the input features of Linear 2" in report.kept["0"]
    assert_same(model, small, torch.randn(2, 3, 6, 4))


def test_unfrozen_gates_decide():
    model = nn.Sequential(GatedConv2d(3, 4, 1), nn.ReLU(), GatedConv2d(4, 4, 1, dynamic=True))
    with torch.no_grad():
        model[0].gate.theta.copy_(torch.tensor([1.0, -1.0, 1.0, -1.0]))
    x = torch.randn(2, 3, 4, 4)
    with pytest.raises(RuntimeError, match="2: expected counted samples, got 0"):
        compacted(model, x)
    with collect_statistics(model):
        model(x)
    small, report = compacted(model, x)
    assert report.removed == {"0": (2, 4)} and model[0].gate.decision is None
    assert small[0].out_channels == 2


def test_refusals(monkeypatch):
    x = torch.randn(1, 3, 5, 5)
    with pytest.raises(ValueError, match="expected a model with gates, got none in Sequential"):
        compacted(nn.Sequential(nn.Conv2d(3, 4, 1)), x)

    class Branches(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv = GatedConv2d(3, 4, 1)

        def forward(self, x):
            return self.conv(x) if x.sum() > 0 else x

    with pytest.raises(ValueError, match=r"torch.fx cannot trace Branches: "):
        compacted(Branches(), x)
    model = nn.Sequential(GatedConv2d(3, 4, 1), nn.ReLU(), nn.Conv2d(4, 2, 1))
    model[0].gate.freeze(torch.arange(4) < 2)
    shrink = compaction.shrink._cut

    def wrong(layer, *args):
        shrink(layer, *args)
        layer.module.weight.data.add_(0.1)

    monkeypatch.setattr(compaction.shrink, "_cut", wrong)
    with pytest.raises(RuntimeError, match="differs from the gated one by"):
        compacted(model, x)
