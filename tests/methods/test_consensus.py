"""Gates as a preset: what closes, what the record says, and that the compacted network computes the same."""

from __future__ import annotations

import json

import pytest
import torch
from torch import nn

import evoprune_kernels as ek
from evoprune_kernels.methods import run
from evoprune_kernels.nn import GatedConv2d, gate_model_
from evoprune_kernels.nn.gate_placement import gates_behind_norms_, settle_gates_
from tests.methods.images import ARGUMENTS, TRAIN, VALIDATION, make_model

METHODS = {
    "static": ("consensus_gates", {"budget": 30.0, "gate_lr": 20.0}),
    "dynamic": ("consensus_gates", {"budget": 30.0, "gate_lr": 20.0, "dynamic": True}),
    "in front": ("consensus_gates", {"budget": 30.0, "gate_lr": 20.0, "place": "conv"}),
    "random": ("random_gates", {}),
    "bn": ("bn_polarization", {"strength": 1e-3}),
}
CONVS = ["0", "3", "6"]


def finish(name, model=None, **kwargs):
    method, options = METHODS[name]
    arguments = {**ARGUMENTS, "sparsity": 0.5, **options, **kwargs}
    return run(method, model or make_model(), TRAIN, VALIDATION, **arguments)


@pytest.mark.parametrize("name", METHODS)
def test_channels_close_leave_and_nothing_else_changes(name):
    result = finish(name)
    record = result.record
    assert json.loads(json.dumps(record, allow_nan=False))["method"] == METHODS[name][0]
    assert record["history"][-1]["step"] == 80
    closed = 0
    for layer in CONVS:
        conv, mask = result.model.get_submodule(layer), result.masks[f"{layer}.weight"]
        rows = mask.flatten(1)
        assert torch.equal(rows.all(1), rows.any(1)) and bool((conv.weight[~mask] == 0).all())
        assert record["details"]["open"][layer] == [int(rows.all(1).sum()), len(rows)]
        closed += int((~rows.all(1)).sum())
    assert closed > 0
    images, labels = VALIDATION[0]
    small = result.compacted
    assert not any(isinstance(m, GatedConv2d) for m in small.modules())
    with torch.no_grad():
        want, got = result.model.eval()(images), small(images)
    torch.testing.assert_close(got, want, rtol=1e-4, atol=1e-4)
    assert record["history"][-1]["validation/accuracy"] == pytest.approx(
        (got.argmax(1) == labels).double().mean().item(), abs=1e-9
    )
    compaction = record["details"]["compaction"]
    kept = sum(m.weight.numel() for m in small.modules() if isinstance(m, nn.Conv2d | nn.Linear))
    assert compaction["connections"] == [8 * 9 + 12 * 8 * 9 + 12 * 12 * 9 + 120, kept]
    assert compaction["removed"] == 1 - kept / compaction["connections"][0] > 0
    assert compaction["parameters"][1] == sum(p.numel() for p in small.parameters())


def test_random_gates_keep_the_share_of_every_layer_from_the_start():
    result = finish("random", sparsity=0.75)
    assert result.record["details"]["open"] == {"0": [2, 8], "3": [3, 12], "6": [3, 12]}
    again, other = finish("random", sparsity=0.75), finish("random", sparsity=0.75, seed=1)
    same = [torch.equal(result.masks[n], again.masks[n]) for n in result.masks]
    assert all(same) and any(not torch.equal(result.masks[n], other.masks[n]) for n in other.masks)


def test_the_smallest_scales_close_at_equal_ones_the_last_first():
    """Without steps that change them: scales set by hand, all costs equal."""
    from evoprune_kernels.methods.consensus import _close_smallest
    from evoprune_kernels.methods.job import Job, Run

    model = nn.Sequential(nn.Conv2d(2, 4, 1, bias=False), nn.BatchNorm2d(4), nn.Conv2d(4, 3, 1))
    gate_model_(model, "0")
    with torch.no_grad():
        model[1].weight.copy_(torch.tensor([0.5, 0.1, 0.5, 0.9]))
    job = Job(TRAIN, None, 0.5, "channel", 1, 0)
    state = Run(job, model)
    state.details["norms"] = {"0": "1"}
    _close_smallest(state, "parameters")
    assert model[0].gate.decision.tolist() == [True, False, False, True]


def test_static_gates_are_what_they_were_after_freezing_and_polarization_is_zero():
    numbers = finish("static").record["numbers"]
    assert numbers["static/accuracy"] == numbers["dynamic/accuracy"]
    assert numbers["polarization"] == 0.0


def test_numbers_of_dynamic_gates_by_hand():
    """Polarization over the validation images, replayed with the gates' own networks."""
    seen = {}

    def watch(model, batches):
        gates = ek.nn.gates_of(model).values()
        found = ek.methods.classification(model, batches)
        if all(g.decision is None for g in gates):
            seen["means"] = torch.cat([g.last.double().mean(0) for g in gates])
            seen["accuracy"] = found["accuracy"]
        return found

    numbers = finish("dynamic", evaluate=watch).record["numbers"]
    expected = (seen["means"] * (1 - seen["means"])).mean().item()
    assert numbers["polarization"] == pytest.approx(expected, abs=1e-9)
    assert numbers["dynamic/accuracy"] == seen["accuracy"]


def test_where_and_exclude_choose_the_layers():
    result = finish("random", where=["0", "3"], exclude=["3"])
    assert list(result.masks) == ["0.weight"]


def test_the_best_state_under_the_final_gates_is_kept():
    result = finish("static", keep_best=True, finetune=48)
    losses = {h["step"]: h["validation/loss"] for h in result.record["history"] if h["step"] > 64}
    assert len(losses) == 3 and result.record["best_step"] == min(losses, key=losses.get)
    found = ek.methods.classification(result.compacted, VALIDATION)
    assert found["loss"] == pytest.approx(min(losses.values()), rel=1e-4)


class Cut(Exception):
    """The power is gone."""


@pytest.mark.parametrize("cut_at", [29, 71])
@pytest.mark.parametrize("name", ["dynamic", "bn"])
def test_a_cut_run_ends_as_the_whole_one(name, cut_at, tmp_path):
    whole, path = finish(name), tmp_path / "run.pt"

    def power_cut(numbers, step):
        if step >= cut_at:
            raise Cut

    with pytest.raises(Cut):
        finish(name, checkpoint=path, checkpoint_every=7, log=power_cut)
    resumed = finish(name, make_model(seed=5), checkpoint=path, checkpoint_every=7)
    states = zip(
        whole.model.state_dict().values(), resumed.model.state_dict().values(), strict=True
    )
    assert all(torch.equal(a, b) for a, b in states)
    for key in ("history", "numbers", "details"):
        assert resumed.record[key] == whole.record[key]


@pytest.mark.parametrize(
    ("name", "kwargs", "message"),
    [
        ("static", {"sparsity": None}, "'consensus_gates' needs a sparsity, got None"),
        ("static", {"sparsity": 1.0}, "got sparsity=1.0"),
        ("static", {"pattern": "2:4"}, "removes channels: .* got '2:4'"),
        ("static", {"place": "behind"}, "got place='behind'"),
        ("static", {"by": "bytes"}, "got by='bytes'"),
        ("static", {"ste": "soft"}, "got ste='soft'"),
        ("static", {"budget": 0.0}, "expected budget > 0, got budget=0.0"),
        ("static", {"polar": -1.0}, "got polar=-1.0"),
        ("static", {"speed": 1}, r"no options \['speed'\]"),
        ("static", {"where": "layer*"}, "no convolution of Sequential matches 'layer.'"),
        ("random", {"exclude": ["0", "3", "6"]}, "expected a model with convolutions to gate"),
        ("bn", {"strength": 0.0}, "got strength=0.0"),
        ("bn", {"t": -1.0}, "got t=-1.0"),
    ],
)
def test_bad_jobs_change_nothing(name, kwargs, message):
    model = make_model()
    before = {k: v.clone() for k, v in model.state_dict().items()}
    with pytest.raises(ValueError, match=message):
        finish(name, model, **kwargs)
    after = model.state_dict()
    assert list(after) == list(before) and all(torch.equal(v, before[k]) for k, v in after.items())


def test_scales_need_norms():
    model = nn.Sequential(
        nn.Conv2d(1, 4, 3), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 10)
    )
    with pytest.raises(ValueError, match="expected a batch norm behind every gated convolution"):
        finish("bn", model)
    assert type(model[0]) is nn.Conv2d


def test_a_model_that_cannot_be_traced_is_trained_and_the_reason_said():
    class Odd(nn.Module):
        def __init__(self):
            super().__init__()
            self.body = make_model()

        def forward(self, x):
            return self.body(x) if float(x.sum()) >= 0 else self.body(-x)

    result = finish("random", Odd(), place="norm")
    assert result.compacted is None
    assert result.record["details"]["compaction"].startswith("none: torch.fx cannot trace Odd")
    assert "cannot trace" in result.record["details"]["in_front_of_the_norm"]["body.0"]


def test_gates_behind_a_norm_multiply_its_output_and_settle_to_the_same():
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Conv2d(2, 3, 3, padding=1), nn.BatchNorm2d(3), nn.ReLU(), nn.Conv2d(3, 2, 1)
    )
    with torch.no_grad():
        model[1].bias.fill_(0.5)
        model[1].running_mean.fill_(0.25)
    plain = [model[0], model[1]]
    x = torch.randn(4, 2, 5, 5)
    model.eval()
    with torch.no_grad():
        normed = plain[1](plain[0](x)) * torch.tensor([1.0, 0.0, 1.0]).view(1, 3, 1, 1)
        want = model[3](normed.relu())
    gate_model_(model, "0")
    assert gates_behind_norms_(model) == {}
    with pytest.raises(RuntimeError, match="expected frozen gates"):
        settle_gates_(model)
    model[0].gate.freeze(torch.tensor([True, False, True]))
    torch.testing.assert_close(model(x), want)
    settle_gates_(model)
    assert type(model[0]) is GatedConv2d and not model[1]._forward_hooks
    torch.testing.assert_close(model(x), want)
    small, report = ek.nn.compact(model, x)
    assert report.removed == {"0": (1, 3)}
    torch.testing.assert_close(small(x), want)


def test_an_open_gate_behind_a_norm_has_a_gradient_and_in_front_of_it_none():
    """What the placement is for: a batch norm divides by the spread, so the loss does not depend on an open gate."""

    def gradient(behind):
        torch.manual_seed(0)
        model = nn.Sequential(nn.Conv2d(2, 3, 3, bias=False), nn.BatchNorm2d(3), nn.ReLU())
        gate_model_(model)
        if behind:
            gates_behind_norms_(model)
        model(torch.randn(8, 2, 6, 6)).square().sum().backward()
        return model[0].gate.theta.grad.abs().max().item()

    assert gradient(behind=True) > 1.0
    assert gradient(behind=False) < 1e-2
