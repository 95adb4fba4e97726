"""ssProp in a whole model: which layers are swapped, random channels, schedules by literal values, resuming."""

from __future__ import annotations

import copy
import io

import pytest
import torch
from torch import nn
from torch.nn.utils import parametrizations, prune

from evoprune_kernels.nn import SSPropConv2d, SSPropLinear, SSPropSchedule, ssprop_model_
from evoprune_kernels.nn.ssprop_schedule import SSPropRamp


def network():
    """conv, batch norm, a shared linear layer under two names, attention, head."""
    model = nn.Module()
    model.conv = nn.Conv2d(3, 8, 3)
    model.norm = nn.BatchNorm2d(8)
    model.one = nn.Linear(8, 8)
    model.other = model.one
    model.attention = nn.MultiheadAttention(8, 2)
    model.head = nn.Linear(8, 2, bias=False)
    return model


def test_every_conv_and_linear_is_swapped_in_place():
    model = network()
    before, keys = dict(model.named_parameters()), list(model.state_dict())
    report = ssprop_model_(model, kept=0.5, exclude="head", weight_only=True)
    assert report.swapped == ["conv", "one"]
    assert list(report.skipped) == ["attention.out_proj", "head"]
    assert "its forward may differ" in report.skipped["attention.out_proj"]
    assert report.skipped["head"] == "excluded" and type(model.head) is nn.Linear
    assert type(model.conv) is SSPropConv2d and model.conv.weight_only and model.conv.kept == 0.5
    assert type(model.one) is SSPropLinear and model.one is model.other
    after = dict(model.named_parameters())
    assert list(model.state_dict()) == keys and list(after) == list(before)
    assert all(after[name] is before[name] for name in before)


def test_a_second_call_leaves_the_layers_alone():
    model = nn.Sequential(nn.Linear(3, 4), nn.Linear(4, 5))
    ssprop_model_(model, exclude=["1"])
    first = model[0]
    report = ssprop_model_(model)
    assert model[0] is first and report.swapped == ["1"]
    assert report.skipped == {"0": "SSPropLinear is a ssProp layer already"}


@pytest.mark.parametrize(
    "options, message",
    [
        ({"exclude": ["head", "layer9.*"]}, r"exclude 'layer9\.\*' matches no Conv2d or Linear.*'conv'"),
        ({"exclude": "norm"}, "exclude 'norm' matches no"),
        ({"kept": 0.0}, r"expected kept in \(0, 1\], got 0\.0"),
    ],
)  # fmt: skip
def test_an_error_leaves_the_model_as_it_was(options, message):
    model = network()
    before = dict(model.named_modules())
    with pytest.raises(ValueError, match=message):
        ssprop_model_(model, **options)
    assert dict(model.named_modules()) == before


def test_a_layer_is_no_model():
    with pytest.raises(ValueError, match="model is itself a Linear"):
        ssprop_model_(nn.Linear(2, 2))


def test_layers_that_cannot_be_swapped_say_why():
    model = nn.Sequential(*(nn.Linear(2, 2) for _ in range(3)), nn.LazyLinear(2))
    parametrizations.orthogonal(model[0])
    prune.identity(model[1], "weight")
    model[2].forward = lambda x: x
    report = ssprop_model_(model)
    assert report.swapped == []
    assert [w in r for w, r in zip(
        ["ParametrizedLinear", "not a Parameter", "replaced on the instance", "LazyLinear"],
        report.skipped.values(), strict=True,
    )] == [True] * 4  # fmt: skip


# ---- random channels ----
def kept_set(layer):
    """The channels whose gradient one backward computed."""
    layer.zero_grad()
    layer(torch.ones(1, layer.in_features)).sum().backward()
    return tuple(layer.bias.grad.nonzero().flatten().tolist())


def random_linear(seed=0, **options):
    return SSPropLinear(3, 40, kept=0.2, random=True, seed=seed, **options)


def test_random_channels_depend_on_seed_layer_and_draw_only():
    layer = random_linear(seed=7)
    state = torch.get_rng_state()
    draws = [kept_set(layer) for _ in range(4)]
    assert torch.equal(state, torch.get_rng_state())
    torch.manual_seed(99)
    other = random_linear(seed=7)
    assert [kept_set(other) for _ in range(4)] == draws
    assert len(set(draws)) == 4 and {len(d) for d in draws} == {8}
    assert kept_set(random_linear(seed=8)) != draws[0]
    model = nn.Sequential(nn.Linear(3, 40), nn.Linear(3, 40))
    ssprop_model_(model, random=True, seed=7)
    assert kept_set(model[0]) != kept_set(model[1])


def test_random_channels_are_uniform():
    """2000 draws of 8 of 40: each channel 400 times, standard deviation sqrt(2000 * .2 * .8) = 18."""
    layer = random_linear()
    counts = torch.zeros(40)
    for _ in range(2000):
        counts[layer._draw()] += 1
    assert counts.sum() == 16000 and (counts - 400).abs().max() < 5 * 18


def test_random_backward_is_the_masked_one():
    layer = random_linear(dtype=torch.float64)
    x, grad = torch.randn(5, 3, dtype=torch.float64), torch.randn(5, 40, dtype=torch.float64)
    layer(x).backward(grad)
    kept = layer.bias.grad != 0
    assert int(kept.sum()) == 8
    torch.testing.assert_close(layer.weight.grad, (grad * kept).t() @ x)


# ---- schedules ----
@pytest.mark.parametrize(
    "options, shares",
    [
        ({"kept": 0.3}, [0.3, 0.3, 0.3]),
        ({"kept": 1.0, "ramp": "linear", "final": 0.2, "total": 5}, [1, 0.8, 0.6, 0.4, 0.2, 0.2]),
        ({"kept": 0.2, "ramp": "linear", "final": 0.6, "total": 3}, [0.2, 0.4, 0.6, 0.6]),
        ({"kept": 1.0, "ramp": "linear", "final": 0.2, "period": 4}, [1, 0.8, 0.6, 0.4, 1, 0.8]),
        ({"kept": 1.0, "ramp": "cosine", "final": 0.2, "total": 5},
         [1, 0.882842712, 0.6, 0.317157288, 0.2, 0.2]),
        ({"kept": 0.8, "ramp": "cosine", "final": 0.4, "period": 2}, [0.8, 0.6, 0.4, 0.6, 0.8, 0.6]),
        ({"kept": 0.9, "ramp": "bar", "final": 0.2, "total": 5}, [0.9, 0.9, 0.2, 0.2, 0.2, 0.2]),
        ({"kept": 0.9, "ramp": "bar", "final": 0.2, "period": 4}, [0.9, 0.9, 0.2, 0.2, 0.9]),
        ({"kept": 0.5, "ramp": "linear", "final": 0.1, "total": 1}, [0.5, 0.5]),
        ({"kept": 0.2, "interleave": 1}, [1, 0.2, 1, 0.2, 1]),
        ({"kept": 0.2, "interleave": 2}, [1, 1, 0.2, 0.2, 1, 1]),
        ({"kept": 0.2, "warmup": 2}, [1, 1, 0.2, 0.2]),
        ({"kept": 0.2, "warmup": 1, "interleave": 1}, [1, 1, 0.2, 1, 0.2]),
        ({"kept": 1.0, "ramp": "linear", "final": 0.2, "total": 5, "interleave": 1},
         [1, 0.8, 1, 0.4, 1, 0.2]),
    ],
)  # fmt: skip
def test_ramps_by_literal_values(options, shares):
    ramp = SSPropRamp(**options)
    assert [ramp.at(t) for t in range(len(shares))] == pytest.approx(shares, abs=1e-9)


@pytest.mark.parametrize(
    "options, message",
    [
        ({"ramp": "step"}, r"expected ramp in .*, got 'step'"),
        ({"kept": 0.0}, r"expected kept in \(0, 1\], got 0\.0"),
        ({"ramp": "linear", "final": 1.5, "total": 3}, r"expected final in \(0, 1\], got 1\.5"),
        ({"ramp": "linear", "total": 3}, "needs final"),
        ({"ramp": "bar", "final": 0.2}, "either total or period, got total=None, period=None"),
        ({"ramp": "bar", "final": 0.2, "total": 3, "period": 2}, "got total=3, period=2"),
        ({"ramp": "cosine", "final": 0.2, "total": 0}, "expected total or period >= 1, got 0"),
        ({"total": 5}, "'constant' takes no final, total or period"),
        ({"warmup": -1}, "expected warmup >= 0, got -1"),
    ],
)
def test_ramp_errors(options, message):
    with pytest.raises(ValueError, match=message):
        SSPropRamp(**options)


def model_of_two():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(1, 10, 3), nn.Flatten(), nn.Linear(40, 10))
    ssprop_model_(model, random=True)
    return model


def test_a_schedule_sets_every_layer():
    model = model_of_two()
    schedule = SSPropSchedule(model, 1.0, "linear", final=0.2, total=3)
    seen = [(model[0].kept, model[2].kept_channels)]
    for _ in range(3):
        schedule.step()
        seen.append((model[0].kept, model[2].kept_channels))
    assert seen == [(1.0, 10), (0.6, 6), (0.2, 2), (0.2, 2)]
    with pytest.raises(ValueError, match="Linear has no ssProp layer"):
        SSPropSchedule(nn.Linear(2, 2))


def train(model, schedule, steps):
    """The gradients of some steps, with a schedule that moves after each."""
    found = []
    for _ in range(steps):
        model.zero_grad()
        model(torch.ones(2, 1, 4, 4)).square().sum().backward()
        found.append([p.grad.clone() for p in model.parameters()])
        schedule.step()
    return found


def test_a_checkpoint_resumes():
    """Share and random channels go on as in the run that was not interrupted, with the settings of the checkpoint."""
    model = model_of_two()
    schedule = SSPropSchedule(model, 0.8, "cosine", final=0.2, total=6, interleave=1)
    train(model, schedule, 3)
    file = io.BytesIO()
    torch.save({"model": model.state_dict(), "ssprop": schedule.state_dict()}, file)
    whole = train(model, schedule, 3)

    file.seek(0)
    state = torch.load(file, weights_only=True)
    resumed = model_of_two()
    again = SSPropSchedule(resumed, 0.3)
    resumed.load_state_dict(state["model"])
    again.load_state_dict(state["ssprop"])
    assert again.t == 3 and resumed[0].kept == again.kept == SSPropRamp(
        0.8, "cosine", 0.2, 6, interleave=1).at(3)  # fmt: skip
    for a, b in zip(train(resumed, again, 3), whole, strict=True):
        assert all(torch.equal(x, y) for x, y in zip(a, b, strict=True))


def test_a_state_of_another_model_is_refused():
    schedule = SSPropSchedule(model_of_two(), 0.5)
    state = copy.deepcopy(schedule.state_dict())
    state["draws"]["head"] = state["draws"].pop("0")
    state["t"] = 5
    with pytest.raises(
        ValueError, match=r"expected the state of layers \['0', '2'\], got \['2', 'head'\]"
    ):
        schedule.load_state_dict(state)
    assert schedule.t == 0
    state = {**schedule.state_dict(), "t": -1}
    with pytest.raises(ValueError, match="expected t >= 0, got -1"):
        schedule.load_state_dict(state)


def test_layers_are_copied_and_pickled_with_their_settings():
    layer = random_linear(seed=3)
    kept_set(layer)
    for twin in (copy.deepcopy(layer), torch.load(_pickled(layer), weights_only=False)):
        assert twin.draws == 1 and twin.kept == 0.2 and twin.seed == 3


def _pickled(layer):
    file = io.BytesIO()
    torch.save(layer, file)
    file.seek(0)
    return file
