"""ssProp as a preset: the schedule reaches the layers, plain layers come out, a cut run goes on."""

from __future__ import annotations

import json
import statistics

import pytest
import torch
from torch import nn

from evoprune_kernels.methods import run
from evoprune_kernels.nn.ssprop import SSPropLayer
from tests.methods.images import ARGUMENTS, TRAIN, VALIDATION, make_model


def finish(model=None, **kwargs):
    return run("ssprop", model or make_model(), TRAIN, VALIDATION, **{**ARGUMENTS, **kwargs})


def plain(model):
    kinds = [type(m) for m in model.modules() if isinstance(m, nn.Conv2d | nn.Linear)]
    return kinds == [nn.Conv2d] * 3 + [nn.Linear]


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({"kept": 0.5}, lambda t: 0.5),
        ({"kept": 1.0, "ramp": "bar", "final": 0.25}, lambda t: 1.0 if t < 40 else 0.25),
        ({"kept": 1.0, "ramp": "linear", "final": 0.21}, lambda t: 1 - 0.79 * t / 79),
        ({"kept": 0.2, "interleave": 4}, lambda t: 1.0 if t // 4 % 2 == 0 else 0.2),
        ({"kept": 0.2, "warmup": 30}, lambda t: 1.0 if t < 30 else 0.2),
    ],
)  # fmt: skip
def test_every_step_has_the_share_of_the_schedule(options, expected):
    seen = []
    model = make_model()

    def loss(model, batch):
        seen.append([m.kept for m in model.modules() if isinstance(m, SSPropLayer)])
        return nn.functional.cross_entropy(model(batch[0]), batch[1])

    result = finish(model, loss=loss, **options)
    wanted = [expected(t) for t in range(80)]
    assert len(seen) == 80 and all(len(set(step)) == 1 and len(step) == 4 for step in seen)
    assert [step[0] for step in seen] == pytest.approx(wanted)
    record = result.record
    assert record["numbers"]["kept_mean"] == pytest.approx(statistics.fmean(wanted))
    assert plain(result.model) and result.masks == {} and record["sparsity"]["sparsity"] == 0.0
    assert json.loads(json.dumps(record, allow_nan=False))["details"]["ssprop"]["swapped"] == [
        "0", "3", "6", "11",
    ]  # fmt: skip


def test_with_every_channel_kept_it_is_dense_training():
    dense = run("dense", make_model(), TRAIN, VALIDATION, **ARGUMENTS)
    ours = finish(kept=1.0)
    for a, b in zip(dense.model.parameters(), ours.model.parameters(), strict=True):
        assert torch.equal(a, b)
    assert ours.record["history"] == dense.record["history"]


def test_it_learns():
    result = finish(kept=0.75)
    assert result.record["history"][-1]["validation/accuracy"] > 0.3  # chance: 0.1


def test_excluded_layers_are_left_alone():
    result = finish(kept=0.5, exclude=["11"])
    assert result.record["details"]["ssprop"] == {
        "swapped": ["0", "3", "6"],
        "skipped": {"11": "excluded"},
    }


class Cut(Exception):
    """The power is gone."""


@pytest.mark.parametrize("cut_at", [29, 71])
def test_a_cut_run_draws_and_ends_as_the_whole_one(cut_at, tmp_path):
    options = {"random": True, "kept": 1.0, "ramp": "cosine", "final": 0.2}
    whole, path = finish(**options), tmp_path / "run.pt"

    def power_cut(numbers, step):
        if step >= cut_at:
            raise Cut

    with pytest.raises(Cut):
        finish(checkpoint=path, checkpoint_every=7, log=power_cut, **options)
    resumed = finish(make_model(seed=5), checkpoint=path, checkpoint_every=7, **options)
    pairs = zip(whole.model.parameters(), resumed.model.parameters(), strict=True)
    assert all(torch.equal(a, b) for a, b in pairs)
    assert resumed.record["numbers"] == whole.record["numbers"]


@pytest.mark.parametrize(
    ("kwargs", "message"),
    [
        ({"sparsity": 0.5}, "prunes nothing: expected sparsity=None, got 0.5"),
        ({"kept": 0.0}, "0"),
        ({"ramp": "step"}, "got 'step'"),
        ({"ramp": "bar"}, "needs final"),
        ({"speed": 1}, r"no options \['speed'\]"),
        ({"exclude": ["nothing"]}, "exclude 'nothing' matches no Conv2d or Linear"),
    ],
)
def test_bad_jobs_change_nothing(kwargs, message):
    model = make_model()
    before = {k: v.clone() for k, v in model.state_dict().items()}
    with pytest.raises(ValueError, match=message):
        finish(model, **kwargs)
    assert plain(model)
    assert all(torch.equal(v, before[k]) for k, v in model.state_dict().items())
