"""compact through every kind of graph: exactly what may leave leaves, and what is not known stays with its reason."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from evoprune_kernels.nn import GatedConv2d, GatedLinear
from tests.nn.compacted import assert_same, close, compacted, trained
from tests.nn.gated_models import SqueezeExcite
from tests.nn.random_graphs import RandomGraph

IMAGE = torch.randn(2, 3, 6, 6, generator=torch.Generator().manual_seed(0))


class Net(nn.Module):
    """``join(a(x), b(x))`` and a layer behind it."""

    def __init__(self, join, a=4, b=4, behind=None, channels=None):
        super().__init__()
        self.a, self.b = GatedConv2d(3, a, 1), GatedConv2d(3, b, 1)
        self.behind = nn.Conv2d(channels or a + b, 2, 1) if behind is None else behind
        self.join = join

    def forward(self, x):
        return self.behind(self.join(self.a(x), self.b(x)))


# ---- concatenation ----
def test_each_source_of_a_concatenation_keeps_its_own():
    norm = nn.BatchNorm2d(9)
    behind = nn.Sequential(norm, nn.SiLU(), nn.Conv2d(9, 2, 1))
    model = trained(Net(lambda a, b: torch.cat([a, b], dim=1), 4, 5, behind), 0.0)
    close(model.a, 0, 2)
    close(model.b, 1, 4)
    small, report = compacted(model, IMAGE)
    keep = [1, 3, 4 + 0, 4 + 2, 4 + 3]
    assert report.removed == {"a": (2, 4), "b": (2, 5)} and report.kept == {}
    assert torch.equal(small.b.weight, model.b.weight[[0, 2, 3]])
    assert torch.equal(small.behind[0].running_mean, norm.running_mean[keep])
    assert torch.equal(small.behind[2].weight, behind[2].weight[:, keep])
    for n in range(2):
        want = behind[2].bias[n].item()
        for c in (0, 2, 5, 8):
            std = (norm.running_var[c].item() + norm.eps) ** 0.5
            k = norm.bias[c].item() - norm.running_mean[c].item() * norm.weight[c].item() / std
            want += behind[2].weight[n, c, 0, 0].item() * F.silu(torch.tensor(k)).item()
        assert small.behind[2].bias[n].item() == pytest.approx(want, rel=1e-5, abs=1e-6)
    assert_same(model, small, IMAGE[:, :, :4])


def test_a_tensor_that_is_concatenated_with_itself_and_with_a_sum():
    model = Net(lambda a, b: torch.cat((a, a + b, a), 1), 4, 4, channels=12)
    close(model.a, 0, 1)
    close(model.b, 1, 2)
    small, report = compacted(model, IMAGE)
    assert report.removed == {"a": (1, 4), "b": (1, 4)}  # 1 alone is closed in both
    keep = [c for c in range(12) if c % 4 != 1]
    assert torch.equal(small.behind.weight, model.behind.weight[:, keep])
    assert "not constant in" in report.kept["a"] and "Conv2d b" in report.kept["a"]
    assert_same(model, small, IMAGE)


@pytest.mark.parametrize(
    "join, channels, names",
    [
        (lambda a, b: torch.cat([a, b], 2), 4, "cat (cat): not along the features"),
        (lambda a, b: torch.cat(a.chunk(2, 1) + b.chunk(2, 1), 1), 8, "chunk (chunk)"),
        (lambda a, b: torch.cat([a[:, 1:], b[:, 1:]], 1), 6, "getitem (getitem"),
        (lambda a, b: torch.matmul(a, b), 4, "matmul (matmul)"),
        (lambda a, b: a.transpose(1, 1) + b, 4, "transpose (transpose)"),
        (lambda a, b: a.view(2, 4, 6, 6) + b, 4, "it is written for this number of features"),
        (lambda a, b: a * (b + a.size(1)), 4, "their number reaches add"),
        (lambda a, b: F.dropout(a, 0.0) + b, 4, "it is random in eval mode too"),
    ],
)
def test_what_has_no_rule_keeps_its_channels_and_is_named(join, channels, names):
    model = Net(join, channels=channels)
    close(model.a, 0, 1)
    close(model.b, 0, 1)
    small, report = compacted(model, IMAGE)
    assert "a" not in report.removed and small.a.out_channels == 4
    assert names in report.kept["a"] + report.kept["b"]
    assert_same(model, small, IMAGE)


def test_a_norm_over_channels_is_named():
    model = nn.Sequential(GatedConv2d(3, 4, 1), nn.GroupNorm(2, 4), nn.Conv2d(4, 2, 1))
    close(model[0], 1)
    small, report = compacted(model, IMAGE)
    assert report.kept == {"0": "1 channels: it reaches GroupNorm 1"} and report.removed == {}
    assert_same(model, small, IMAGE)


# ---- groups ----
@pytest.mark.parametrize("groups", [2, 3, 4])
@pytest.mark.parametrize("seed", range(4))
def test_groups_keep_as_many_as_the_largest(groups, seed):
    inner = GatedConv2d(12, 24, 3, groups=groups)
    model = nn.Sequential(GatedConv2d(3, 12, 1), nn.ReLU(), inner, nn.ReLU(), nn.Conv2d(24, 2, 1))
    model = trained(model, 0.7, seed)
    open_inputs = _by_group(model[0].gate.decision.tolist(), groups)
    open_outputs = _by_group(model[2].gate.decision.tolist(), groups)
    for outputs, inputs in zip(open_outputs, open_inputs, strict=True):
        if not any(inputs):
            outputs[:] = [False] * len(outputs)  # constants: relu(0) in, so bias out
        if not any(outputs):
            inputs[:] = [False] * len(inputs)  # nobody reads them
    alive = [any(i) or any(o) for i, o in zip(open_inputs, open_outputs, strict=True)]
    assert any(alive)
    small, _ = compacted(model, IMAGE)
    for layer_of, given in ((model[0], open_inputs), (model[2], open_outputs)):
        most = max(map(sum, given))
        keep = []
        for g, (mask, used) in enumerate(zip(given, alive, strict=True)):
            closed = [c for c, is_open in enumerate(mask) if not is_open]
            chosen = [c for c, is_open in enumerate(mask) if is_open] + closed[: most - sum(mask)]
            keep += [g * len(mask) + c for c in sorted(chosen)] if used else []
        gated = layer_of.weight * layer_of.gate.decision.view(-1, 1, 1, 1)
        cut = small[0] if layer_of is model[0] else small[2]
        assert cut.out_channels == len(keep)
        if layer_of is model[0]:
            assert torch.equal(cut.weight, gated[keep])
        else:
            assert torch.equal(small[4].weight, model[4].weight[:, keep])
    assert small[2].groups == sum(alive) and small[2].in_channels == small[0].out_channels
    assert_same(model, small, IMAGE[:, :, :5])


def _by_group(mask, groups):
    size = len(mask) // groups
    return [mask[g * size : (g + 1) * size] for g in range(groups)]


def test_every_group_before_a_zero_border_has_its_own_carrier():
    behind = nn.Conv2d(8, 4, 3, padding=1, groups=2, bias=False)
    model = nn.Sequential(GatedConv2d(3, 8, 1), nn.BatchNorm2d(8), nn.Tanh(), behind)
    trained(model, 0.0)
    close(model[0], 0, 1, 2, 5, 6, 7)  # one open in each group
    small, report = compacted(model, IMAGE)
    assert (small[0].out_channels, small[3].in_channels, small[3].groups) == (4, 4, 2)
    assert small[3].bias is None and "carries the constants of others" in report.kept["0"]
    assert_same(model, small, torch.randn(2, 3, 5, 9))


@pytest.mark.parametrize("gated", [False, True])
def test_a_depthwise_convolution_with_several_outputs_a_channel(gated):
    depth = nn.Conv2d(5, 10, 3, padding=1, groups=5)
    depth = GatedConv2d.from_conv(depth) if gated else depth
    model = nn.Sequential(GatedConv2d(3, 5, 1), nn.ReLU(), depth, nn.Sigmoid(), nn.Conv2d(10, 2, 1))
    close(model[0], 1, 3)
    if gated:
        close(depth, 2, 3, 4, 8, 9)  # both of channel 1, one of 2, both of 4
    small, report = compacted(model, IMAGE)
    keep = [0, 2] if gated else [0, 2, 4]
    assert torch.equal(small[0].weight, model[0].weight[keep])
    assert (small[2].groups, small[2].out_channels) == (len(keep), 2 * len(keep))
    assert report.removed == {"0": (5 - len(keep), 5), "2": (10 - 2 * len(keep), 10)}
    assert_same(model, small, IMAGE)


# ---- products ----
@pytest.mark.parametrize("linear", [False, True])
def test_a_share_of_each_channel_leaves_with_it(linear):
    model = SqueezeExcite(linear)
    model.conv, model.bn = GatedConv2d(3, 8, 3, padding=1), nn.Identity()
    close(model.conv, 1, 2, 6)
    small, report = compacted(model, IMAGE)
    keep = [0, 3, 4, 5, 7]
    assert report.removed == {"conv": (3, 8), "up": (3, 8)} and report.kept == {}
    assert torch.equal(small.up.weight, model.up.weight[keep])
    assert torch.equal(small.down.weight, model.down.weight[:, keep])
    assert_same(model, small, torch.randn(3, 3, 5, 7))


class GatedLinearUnit(nn.Module):
    def __init__(self):
        super().__init__()
        self.gate, self.up = GatedLinear(6, 8, bias=False), GatedLinear(6, 8)
        self.down = nn.Linear(8, 6)

    def forward(self, x):
        return x + self.down(F.silu(self.gate(x)) * self.up(x))


def test_a_feedforward_with_a_product():
    model = GatedLinearUnit()
    close(model.gate, 0, 1)
    close(model.up, 1, 5)
    small, report = compacted(model, torch.randn(2, 3, 6))
    keep = [2, 3, 4, 6, 7]  # one of the two being 0 is enough
    assert report.removed == {"gate": (3, 8), "up": (3, 8)}
    assert torch.equal(small.down.weight, model.down.weight[:, keep])
    assert torch.equal(small.up.weight, model.up.weight[keep])
    assert_same(model, small, torch.randn(4, 5, 6))


def test_what_only_closed_channels_read_leaves():
    model = nn.Sequential(nn.Conv2d(3, 6, 1), nn.ReLU(), GatedConv2d(6, 4, 3, groups=2), nn.ReLU())
    model = nn.Sequential(model, nn.Conv2d(4, 2, 1))
    close(model[0][2], 2, 3)
    small, report = compacted(model, IMAGE)
    assert report.removed == {"0.0": (3, 6), "0.2": (2, 4)}
    assert torch.equal(small[0][0].weight, model[0][0].weight[:3]) and small[0][2].groups == 1
    assert_same(model, small, IMAGE)


# ---- pools, shapes, numbers ----
@pytest.mark.parametrize("constant", [0.0, 0.75])
@pytest.mark.parametrize(
    "step, keeps_constants",
    [
        (nn.MaxPool2d(3, 1, 1), True),
        (nn.AvgPool2d(2), True),
        (nn.AvgPool2d(3, 1, 1), False),
        (nn.AvgPool2d(3, 1, 1, count_include_pad=False), True),
        (nn.AvgPool2d(2, divisor_override=3), False),
        (nn.ZeroPad2d(1), False),
        (nn.Upsample(scale_factor=2), True),
        (nn.PReLU(), True),
        (lambda x: F.avg_pool2d(x, 2, 2, 1), False),
        (lambda x: F.avg_pool2d(x, 2, stride=1), True),
        (lambda x: F.max_pool2d(x, 2), True),
        (lambda x: F.pad(x, (1, 0)), False),
        (lambda x: F.interpolate(x, size=x.shape[-2:]), True),
        (lambda x: F.interpolate(x, scale_factor=2, mode="bilinear"), True),
        (lambda x: F.dropout(x, 0.5, False), True),
        (lambda x: x.mean((2, 3), keepdim=True), True),
        (lambda x: x.mean([-1, -2]).unsqueeze(-1).unsqueeze(-1), True),
        (lambda x: x.view(x.shape[0], x.shape[1], -1, 1), True),
        (lambda x: x.reshape((x.size(0), -1, 1, 36)), True),
        (lambda x: x * F.relu6(x + 3) / 6, True),
        (lambda x: (1 - x).clamp(-0.5, 0.5).contiguous(), True),
    ],
)
def test_constants_through_pools_and_shapes(step, keeps_constants, constant):
    class Steps(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv, self.last = GatedConv2d(3, 5, 1), nn.Conv2d(5, 2, 1)
            self.step = step

        def forward(self, x):
            return self.last(self.step(self.conv(x) + constant))

    torch.manual_seed(0)
    model = Steps().double()
    close(model.conv, 1, 4)
    x = IMAGE.double()
    small, report = compacted(model, x)
    leaves = keeps_constants or constant == 0.0
    assert report.removed == ({"conv": (2, 5)} if leaves else {})
    assert (report.kept == {}) is leaves
    assert_same(model, small, x)


def test_flatten_by_view_before_a_linear_layer():
    class Flat(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv, self.fc = GatedConv2d(3, 4, 1), nn.Linear(4 * 36, 5)

        def forward(self, x):
            x = torch.tanh(self.conv(x) + 1)
            return self.fc(x.view(x.size(0), -1))

    model = Flat()
    close(model.conv, 0, 2)
    small, _ = compacted(model, IMAGE)
    keep = [*range(36, 72), *range(108, 144)]
    assert torch.equal(small.fc.weight, model.fc.weight[:, keep])
    assert_same(model, small, IMAGE)


# ---- in place ----
def add_in_place(a, b):
    before, now = F.relu(b), b
    now += a
    return torch.cat([before, b], 1)  # b has changed as well


def relu_in_place(a, b):
    view = (a + 1).detach()
    y = F.relu_(view - 0) + F.relu(view, inplace=True)
    return torch.cat([y, view], 1)


@pytest.mark.parametrize("join", [add_in_place, relu_in_place])
def test_what_is_changed_in_place_and_read_later_stays_right(join):
    for closed_a, closed_b in (((0, 1), (0, 1)), ((0, 1, 2, 3), (1, 2, 3))):
        torch.manual_seed(0)
        model = Net(join)
        close(model.a, *closed_a)
        close(model.b, *closed_b)
        small, report = compacted(model, IMAGE)
        reasons = " ".join(report.kept.values())
        assert "it changes in place what is read later" in reasons
        assert_same(model, small, IMAGE)


def test_what_is_added_in_place_is_needed_though_its_sum_is_not_read():
    class Late(nn.Module):
        def __init__(self):
            super().__init__()
            self.a, self.b = GatedConv2d(3, 4, 1), GatedConv2d(3, 4, 1)
            self.c, self.last = nn.Conv2d(4, 4, 1), nn.Conv2d(4, 2, 1)

        def forward(self, x):
            b = now = self.b(x)
            now += 1
            now += self.c(F.relu(self.a(x)))
            return self.last(b)

    model = Late()
    close(model.a, 0, 3)
    small, report = compacted(model, IMAGE)
    assert report.removed == {"a": (2, 4)}
    assert_same(model, small, IMAGE)


# ---- everything together ----
@pytest.mark.parametrize("closed", [0.2, 0.5, 0.8, 1.0])
def test_random_graphs(closed):
    before = after = 0
    for seed in range(8):
        torch.manual_seed(seed)
        seed = 100 * seed + int(10 * closed)
        model = trained(RandomGraph(seed).double(), closed, seed)
        small, report = compacted(model, torch.randn(2, 3, 4, 4, dtype=torch.float64))
        x = torch.randn(3, 3, 4, 4, dtype=torch.float64)
        with torch.no_grad():
            want, got = model(x.clone()), small(x.clone())
        assert (want - got).abs().max() <= 1e-10 * max(1e-6, float(want.abs().max())), seed
        before, after = before + report.parameters[0], after + report.parameters[1]
    assert after < (1 - 0.4 * closed) * before


# ---- what torch.fx cannot follow ----
class Branches(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv = GatedConv2d(4, 4, 1)

    def forward(self, x):
        return self.conv(x) if x.sum() > 1e9 else -self.conv(x)


def test_a_module_that_cannot_be_traced_stays_whole():
    model = nn.Sequential(GatedConv2d(3, 6, 1), nn.Conv2d(6, 4, 1), Branches(), nn.Conv2d(4, 2, 1))
    close(model[0], 1)
    close(model[2].conv, 2)
    small, report = compacted(model, IMAGE)
    assert report.removed == {"0": (1, 6)} and small[2].conv.out_channels == 4
    assert report.kept["2.conv"].startswith("torch.fx cannot trace Branches 2: ")
    assert type(small[2].conv) is nn.Conv2d
    assert_same(model, small, IMAGE)


def test_a_module_with_parameters_of_its_own_around_gates():
    class Scaled(nn.Module):
        def __init__(self):
            super().__init__()
            self.scale = nn.Parameter(torch.randn(1, 4, 1, 1))
            self.a, self.b = GatedConv2d(3, 6, 1), nn.Conv2d(6, 4, 1)

        def forward(self, x, skip=None, *, sign=1.0):
            y = self.b(F.relu(self.a(x))) * self.scale * sign
            return y if skip is None else y + skip

    model = nn.Sequential(nn.Identity(), Scaled())
    close(model[1].a, 0, 5)
    for net, inner in ((model, "1.a"), (model[1], "a")):
        small, report = compacted(net, IMAGE)
        assert report.removed == {inner: (2, 6)}
        assert_same(net, small, IMAGE)
    skip = torch.randn(2, 4, 6, 6)
    small, _ = compacted(model[1], (IMAGE, skip))
    assert_same(model[1], small, IMAGE, skip)


def test_hooks_and_shared_weights_keep_their_layers():
    model = nn.Sequential(GatedConv2d(3, 4, 1), nn.ReLU(), nn.Conv2d(4, 4, 1), nn.Conv2d(4, 4, 1))
    close(model[0], 1)
    model[2].register_forward_hook(lambda module, inputs, output: output + 1)
    small, report = compacted(model, IMAGE)
    assert report.kept["0"].endswith("Conv2d 2: its forward is hooked or replaced")
    assert_same(model, small, IMAGE)
    model = nn.Sequential(GatedConv2d(3, 4, 1), nn.ReLU(), nn.Conv2d(4, 4, 1), nn.Conv2d(4, 4, 1))
    close(model[0], 1)
    model[3].weight = model[2].weight
    small, report = compacted(model, IMAGE)
    assert report.kept["0"].endswith("it shares a Parameter with another layer")
    assert small[3].weight is small[2].weight
    assert_same(model, small, IMAGE)
