"""``optimize_for_inference`` with convolutions: folding, what is measured, what stays dense and why."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn

import evoprune_kernels as ek
from evoprune_kernels import measure
from evoprune_kernels.inference import tune
from evoprune_kernels.inference.fusion import tails
from evoprune_kernels.nn import SparseConv2d


def prune_(model, pattern="2:4", sparsity=None):
    for module in model.modules():
        if type(module) is nn.Conv2d:
            SparseConv2d.from_conv(module, pattern, sparsity=sparsity)
        if isinstance(module, nn.BatchNorm2d):
            module.running_mean.normal_()
            module.running_var.uniform_(0.5, 2)
            nn.init.uniform_(module.weight, 0.5, 2)
    return model.eval()


def chain(act=nn.ReLU):
    layers = [nn.Conv2d(16, 64, 3, padding=1, bias=False), nn.BatchNorm2d(64), act()]
    return nn.Sequential(*layers, nn.Conv2d(64, 32, 1))


class Residual(nn.Module):
    """As torchvision's BasicBlock: one ReLU, used twice."""

    def __init__(self):
        super().__init__()
        self.conv1, self.bn1 = nn.Conv2d(16, 16, 3, padding=1), nn.BatchNorm2d(16)
        self.conv2, self.bn2 = nn.Conv2d(16, 16, 3, padding=1), nn.BatchNorm2d(16)
        self.relu = nn.ReLU()

    def forward(self, x):
        y = self.bn2(self.conv2(self.relu(self.bn1(self.conv1(x)))))
        return self.relu(x + y)


class Branches(nn.Module):
    """The convolution's output is used twice, and control flow depends on data."""

    def __init__(self, dynamic):
        super().__init__()
        self.conv, self.bn, self.act = nn.Conv2d(16, 16, 1), nn.BatchNorm2d(16), nn.SiLU()
        self.stem = nn.Sequential(nn.Conv2d(16, 16, 1), nn.BatchNorm2d(16))
        self.dynamic = dynamic

    def forward(self, x):
        if self.dynamic and x.sum() > 1e9:
            return x
        y = self.conv(self.stem(x))
        return self.act(self.bn(y)) + y


@pytest.fixture
def always_faster(monkeypatch):
    """Every sparse form is told to be twice as fast, so that what is installed can be checked."""

    def interleave(contenders, **kwargs):
        for call in contenders.values():
            call()
        return measure.Measurement(
            {n: ((2.0 if n.startswith(tune.DENSE) else 1.0),) * 5 for n in contenders}
        )

    monkeypatch.setattr(measure, "interleave", interleave)


@pytest.mark.parametrize(
    "model, found",
    [
        (chain(), {"0": "BatchNorm2d + ReLU"}),
        (chain(nn.Hardswish), {"0": "BatchNorm2d"}),
        (Residual(), {"conv1": "BatchNorm2d", "conv2": "BatchNorm2d"}),
        (Branches(False), {"stem.0": "BatchNorm2d"}),
        (Branches(True), {"stem.0": "BatchNorm2d"}),
        (nn.Sequential(nn.Conv2d(4, 4, 1), nn.GELU("tanh"), nn.BatchNorm2d(4)), {"0": "GELU"}),
        (nn.Sequential(nn.Conv2d(4, 4, 1), nn.BatchNorm2d(4, track_running_stats=False)), {}),
        (nn.Sequential(nn.Conv2d(4, 4, 1), nn.MaxPool2d(2), nn.ReLU()), {}),
    ],
)
def test_what_is_taken_over(model, found):
    assert {name: str(tail) for name, tail in tails(model.eval())[0].items()} == found


def test_hooks_are_left_alone():
    model = chain().eval()
    model[1].register_forward_hook(lambda *_: None)
    assert tails(model) == ({}, {})


@pytest.mark.parametrize(
    "model", [chain(), chain(nn.SiLU), chain(nn.Hardswish), Residual(), Branches(False)]
)
@pytest.mark.parametrize("memory_format", [torch.contiguous_format, torch.channels_last])
def test_the_optimised_model_gives_the_same(model, memory_format, always_faster):
    model = prune_(copy.deepcopy(model))
    dense, x = copy.deepcopy(model), torch.randn(2, 16, 9, 9)
    x = x.contiguous(memory_format=memory_format)
    report = ek.optimize_for_inference(model, x)
    with torch.no_grad():
        torch.testing.assert_close(model(x), dense(x), rtol=1e-4, atol=1e-4)
    convolutions = [m for m in model.modules() if isinstance(m, SparseConv2d)]
    assert len(convolutions) == len(report.layers) == len(report.swapped) >= 2
    assert all(layer.kernel.startswith("nm_conv2d") for layer in report.layers)


def test_the_report_names_what_was_fused(always_faster):
    model = prune_(chain(), "block:16x16", 0.75)
    report = ek.optimize_for_inference(model, torch.randn(1, 16, 8, 8))
    first, second = report.layers
    assert (first.fused, second.fused) == ("BatchNorm2d + ReLU", None)
    assert first.pattern == "block:16x16" and first.shape == (64, 144) and first.calls == {64: 1}
    assert "block_conv2d" in str(report) and "+ BatchNorm2d + ReLU" in str(report)
    assert isinstance(model[1], nn.Identity) and model[0].activation == "relu"


def test_the_report_says_what_was_not_looked_into(always_faster):
    model = nn.Sequential(Branches(True), nn.Conv2d(16, 16, 1), nn.BatchNorm2d(16))
    report = ek.optimize_for_inference(prune_(model), torch.randn(1, 16, 8, 8))
    assert {layer.name: layer.fused for layer in report.layers} == {
        "0.conv": None,
        "0.stem.0": "BatchNorm2d",
        "1": "BatchNorm2d",
    }
    assert set(report.untraced) == {"0"} and "control flow" in report.untraced["0"]
    assert "convolutions of 0 are found in nn.Sequential only: torch.fx cannot trace" in str(report)
    whole = ek.optimize_for_inference(prune_(Branches(True)), torch.randn(1, 16, 8, 8))
    assert "convolutions of the model are found in nn.Sequential only" in str(whole)
    assert ek.optimize_for_inference(prune_(chain()), torch.randn(1, 16, 8, 8)).untraced == {}


def test_a_second_time_changes_nothing(always_faster):
    model, x = prune_(chain()), torch.randn(1, 16, 8, 8)
    ek.optimize_for_inference(model, x)
    with torch.no_grad():
        before = model(x)
        report = ek.optimize_for_inference(model, x)
        assert report.swapped == ["0", "3"] and torch.equal(model(x), before)


def test_what_does_not_win_is_put_back():
    model = prune_(chain())
    modules, x = list(model), torch.randn(1, 16, 8, 8)
    report = ek.optimize_for_inference(model, x, min_speedup=1e6, rounds=3, max_seconds=0.1)
    assert list(model) == modules and report.swapped == []
    assert all("less than 1e+06x" in layer.reason for layer in report.layers)


@pytest.mark.parametrize(
    "conv, reason",
    [
        (nn.Conv2d(16, 16, 3), "no zeros to skip"),
        (nn.Conv2d(16, 16, 3, groups=4), "groups=1, got 4"),
        (nn.Conv2d(16, 16, 3, padding=1, padding_mode="circular"), "padding_mode='circular'"),
    ],
)
def test_what_stays_dense_says_why(conv, reason):
    if conv.groups > 1 or conv.padding_mode != "zeros":
        prune_(nn.Sequential(conv))
    model = nn.Sequential(conv)
    report = ek.optimize_for_inference(model, torch.randn(1, 16, 6, 6), rounds=3)
    assert reason in report.layers[0].reason and model[0] is conv


def test_masks_of_any_pattern_along_the_flattened_weight(always_faster):
    """Zeros are found where they are; those that fit no pattern of a convolution kernel leave it dense."""
    conv = nn.Conv2d(16, 32, 3)
    with torch.no_grad():
        conv.weight.mul_(torch.rand_like(conv.weight) < 0.2)
    report = ek.optimize_for_inference(nn.Sequential(conv), torch.randn(1, 16, 6, 6), rounds=3)
    assert "no convolution op for the pattern unstructured" in report.layers[0].reason
