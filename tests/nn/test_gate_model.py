"""gate_model_: which convolutions of ResNet- and MobileNet-like models get a gate; nothing is half done."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn
from torch.nn import functional as F
from torch.nn.utils import parametrizations

from evoprune_kernels.nn import GatedConv2d, gate_model_, gates_of


class BasicBlock(nn.Module):
    def __init__(self, inputs, outputs, stride):
        super().__init__()
        self.conv1 = nn.Conv2d(inputs, outputs, 3, stride, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(outputs)
        self.conv2 = nn.Conv2d(outputs, outputs, 3, 1, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(outputs)
        same = stride == 1 and inputs == outputs
        self.down = nn.Identity() if same else nn.Conv2d(inputs, outputs, 1, stride, bias=False)

    def forward(self, x):
        y = self.bn2(self.conv2(F.relu(self.bn1(self.conv1(x)))))
        return F.relu(y + self.down(x))


def resnet():
    return nn.Sequential(
        nn.Conv2d(3, 8, 3, padding=1),
        BasicBlock(8, 8, 1),
        BasicBlock(8, 12, 2),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(12, 5),
    )


def mobilenet():
    return nn.Sequential(
        nn.Conv2d(3, 8, 3, 2, 1),
        nn.Conv2d(8, 16, 1),
        nn.Conv2d(16, 16, 3, padding=1, groups=16),
        nn.Conv2d(16, 32, 3, padding=1, groups=16),  # depthwise with two outputs a channel
        nn.Conv2d(32, 8, 1, groups=2),
    )


@pytest.mark.parametrize("dynamic", [False, True])
@pytest.mark.parametrize("build", [resnet, mobilenet])
def test_the_gated_model_is_the_model_until_gates_close(build, dynamic):
    model = build()
    plain, parameters = copy.deepcopy(model), dict(model.named_parameters())
    report = gate_model_(model, dynamic=dynamic)
    x = torch.randn(2, 3, 12, 12)
    assert torch.equal(model(x), plain(x))
    assert set(gates_of(model)) == set(report.gated)
    for name, parameter in parameters.items():
        assert model.get_parameter(name) is parameter
    assert model.load_state_dict(plain.state_dict()).missing_keys == []


def test_resnet_report():
    model = resnet()
    report = gate_model_(model, where=["1.*", "2.conv?"])
    assert report.gated == {"1.conv1": 8, "1.conv2": 8, "2.conv1": 12, "2.conv2": 12}
    assert report.skipped == {"0": "excluded by where", "2.down": "excluded by where"}
    assert str(report).splitlines()[0] == "gated 4 convolutions, 40 channels"
    report = gate_model_(model, where=lambda name, conv: conv.kernel_size == (1, 1))
    assert report.gated == {"2.down": 12} and report.skipped["1.conv1"] == "already gated"


def test_depthwise_convolutions_follow():
    report = gate_model_(mobilenet())
    assert list(report.gated) == ["0", "1", "4"]
    assert report.skipped == dict.fromkeys(
        ["2", "3"], "depthwise: its channels follow the gate of the convolution before it"
    )


def test_a_shared_layer_is_one_layer():
    conv = nn.Conv2d(4, 4, 3, padding=1)
    model = nn.Sequential(conv, nn.ReLU(), conv)
    report = gate_model_(model)
    assert report.gated == {"0": 4} and model[0] is model[2] and len(gates_of(model)) == 1


def test_mode_hooks_and_options_come_along():
    model, calls = resnet().eval(), []
    model[0].register_forward_hook(lambda *_: calls.append(1))
    gate_model_(model, dynamic=True, hidden=3, ste="identity", gate_init=0.5)
    model(torch.randn(1, 3, 8, 8))
    gate = model[0].gate
    assert calls == [1] and not gate.training and gate.seen == 0
    assert (gate.ste, gate.init, gate.hidden_weight.shape) == ("identity", 0.5, (3, 3))


def test_what_it_leaves_alone():
    class Odd(nn.Conv2d):
        pass

    model = nn.Sequential(Odd(1, 1, 1), parametrizations.weight_norm(nn.Conv2d(1, 1, 1)))
    replaced = nn.Conv2d(1, 1, 1)
    replaced.forward = lambda x: x
    model.append(replaced)
    report = gate_model_(model)
    assert report.gated == {} and [reason.split(":")[0] for reason in report.skipped.values()] == [
        "Odd is a subclass of nn.Conv2d, its forward may differ",
        "parametrized",
        "its forward is replaced on the instance (a hook of another library)",
    ]


@pytest.mark.parametrize(
    "options, error, message",
    [
        ({"where": ["0", "nope*"]}, ValueError, "where: no convolution matches 'nope\\*'"),
        ({"width": 3}, TypeError, "got 'width'"),
        ({"ste": "tanh"}, ValueError, "got 'tanh'"),
        ({"dynamic": True, "hidden": 0}, ValueError, "expected hidden >= 1, got 0"),
    ],
)
def test_nothing_is_changed_after_an_error(options, error, message):
    model = resnet()
    with pytest.raises(error, match=message):
        gate_model_(model, **options)
    assert gates_of(model) == {} and model.state_dict().keys() == resnet().state_dict().keys()


def test_an_error_in_a_late_layer_changes_nothing():
    model = resnet()

    def where(name, conv):
        if name == "2.conv2":
            raise LookupError(name)
        return True

    with pytest.raises(LookupError):
        gate_model_(model, where)
    assert gates_of(model) == {}


def test_the_model_itself_is_refused():
    with pytest.raises(ValueError, match="model is itself a Conv2d"):
        gate_model_(nn.Conv2d(1, 1, 1))


def test_it_trains():
    model = resnet()
    gate_model_(model)
    model(torch.randn(2, 3, 8, 8)).square().mean().backward()
    assert all(p.grad is not None for p in model.parameters())
    assert isinstance(model[1].conv1, GatedConv2d)
