"""PruneConfig and the schedule: literal values, validation with both values, primitives."""

from __future__ import annotations

import json

import pytest
import torch

import evoprune_kernels as ek
from evoprune_kernels import PruneConfig


def test_cubic_is_zhu_and_gupta():
    """s_t = s_f * (1 - (1 - (t - t0) / (t1 - t0))^3), written out."""
    config = PruneConfig("unstructured", 0.9, start=10, end=110)
    for t in range(10, 111):
        assert 1 - config.kept(t) == pytest.approx(0.9 * (1 - (1 - (t - 10) / 100) ** 3), abs=1e-12)
    assert config.kept(9) == 1.0
    assert config.kept(110) == config.kept(10_000) == pytest.approx(0.1)


def test_other_ramps():
    linear = PruneConfig("unstructured", 0.8, start=0, end=4, ramp="linear")
    assert [round(linear.kept(t), 6) for t in range(6)] == [1.0, 0.8, 0.6, 0.4, 0.2, 0.2]
    constant = PruneConfig("unstructured", 0.8, start=3, end=9, ramp="constant")
    assert [round(constant.kept(t), 6) for t in (2, 3, 9)] == [1.0, 0.2, 0.2]


@pytest.mark.parametrize(
    ("kwargs", "due"),
    [
        ({"start": 0, "every": 4}, [1, 5, 9, 13, 17]),
        ({"start": 1, "every": 4}, [1, 5, 9, 13, 17]),
        ({"start": 3, "end": 10, "every": 4}, [3, 7, 10]),
        ({"start": 3, "end": 10, "every": 4, "freeze_at": 16}, [3, 7, 10, 11, 15]),
        ({"start": 3, "end": 3}, [3]),
        ({"start": 0, "end": 0}, [1]),
        ({"start": 3, "every": 4, "freeze_at": 9}, [3, 7]),
        ({"start": 3, "every": 4, "ramp": "one-shot"}, [3]),
        ({"start": 3, "end": 10, "every": 4, "ramp": "constant"}, [3, 7, 10]),
    ],
)
def test_when_masks_are_chosen(kwargs, due):
    config = PruneConfig("2:4", **kwargs)
    assert [t for t in range(1, 20) if config.due(t)] == due
    if config.frozen_after is not None:
        assert not config.frozen(config.frozen_after) and config.frozen(config.frozen_after + 1)


@pytest.mark.parametrize(
    ("kwargs", "message"),
    [
        ({"pattern": "2:5x"}, "'2:5x'"),
        ({"pattern": "5:4"}, "5:4"),
        ({"pattern": "unstructured"}, "'unstructured' needs a sparsity, got None"),
        ({"pattern": "unstructured", "sparsity": 1.0}, "sparsity < 1, got sparsity=1.0"),
        ({"pattern": "unstructured", "sparsity": -0.1}, "got sparsity=-0.1"),
        ({"pattern": "block:4x4", "sparsity": float("nan")}, "got sparsity=nan"),
        ({"sparsity": 0.75}, "'2:4' has the sparsity 0.5, got sparsity=0.75"),
        ({"importance": "size"}, "got 'size'"),
        ({"averaging": "median"}, "'median'"),
        ({"averaging": "ewma", "beta": 1.0}, "beta < 1, got beta=1.0"),
        ({"ramp": "steep"}, "got 'steep'"),
        ({"scope": "layer"}, "got 'layer'"),
        ({"scope": "global"}, "needs pattern 'unstructured', got '2:4'"),
        ({"start": -1}, "start=-1"),
        ({"every": 0}, "every=0"),
        ({"start": 9, "end": 8}, "end=8, start=9"),
        ({"start": 2, "end": 8, "freeze_at": 7}, "freeze_at=7, 8"),
        ({"start": 5, "freeze_at": 4}, "freeze_at=4, 5"),
    ],
)
def test_validation_names_both_values(kwargs, message):
    with pytest.raises(ValueError) as error:
        PruneConfig(**kwargs)
    assert message in str(error.value)


def test_primitives_round_trip_through_json():
    config = PruneConfig("block:16x8", 0.75, "taylor", averaging="power:2", start=5, end=50)
    values = config.to_dict()
    assert all(v is None or isinstance(v, str | int | float | bool) for v in values.values())
    assert PruneConfig.from_dict(json.loads(json.dumps(values))) == config
    with pytest.raises(ValueError, match=r"unknown PruneConfig keys \['steepness'\]"):
        PruneConfig.from_dict({**values, "steepness": 1})
    assert PruneConfig("02:4").pattern == "2:4", "the pattern is stored in its one spelling"


def test_what_a_group_may_hold():
    w = torch.nn.Parameter(torch.zeros(4, 4))
    for bad in ("2:4", 3, True):
        with pytest.raises(TypeError, match="PruneConfig or None"):
            ek.optim.AdamW([w], prune=bad)
        with pytest.raises(TypeError, match="PruneConfig or None"):
            ek.optim.SGD([{"params": [w], "prune": bad}])
    config = PruneConfig("2:4", start=3)
    optimizer = ek.optim.AdamW(
        [{"params": [w]}, {"params": [torch.nn.Parameter(torch.zeros(2, 2))], "prune": None}],
        prune=config,
    )
    assert [g["prune"] for g in optimizer.param_groups] == [config.to_dict(), None]
    assert optimizer.defaults["prune"] == config.to_dict()


def test_a_config_assigned_by_hand_is_taken():
    w = torch.nn.Parameter(torch.randn(4, 8))
    optimizer = ek.optim.SGD([w], lr=0.1)
    optimizer.param_groups[0]["prune"] = PruneConfig("2:4", importance="magnitude")
    w.grad = torch.randn(4, 8)
    optimizer.step()
    assert int((w == 0).sum()) == 16
    assert isinstance(optimizer.param_groups[0]["prune"], dict)


def test_nothing_to_prune_warns():
    with pytest.warns(UserWarning, match="nothing is pruned"):
        ek.optim.SGD([torch.nn.Parameter(torch.zeros(4))], lr=0.1, prune=PruneConfig())


def test_refusals_leave_no_group_behind():
    w, z = (
        torch.nn.Parameter(torch.zeros(2, 4)),
        torch.nn.Parameter(torch.zeros(3, 3, dtype=torch.cfloat)),
    )
    optimizer = ek.optim.AdamW([w], prune=PruneConfig())
    with pytest.raises(TypeError, match=r"parameter 0 of shape \(3, 3\) and torch.complex64"):
        optimizer.add_param_group({"params": [z]})
    assert len(optimizer.param_groups) == 1
    with pytest.raises(RuntimeError, match="differentiable=True"):
        ek.optim.AdamW([w], prune=PruneConfig(), differentiable=True)
    flat = torch.nn.Parameter(torch.zeros(4))
    flat._fsdp_flattened = True
    with pytest.raises(ValueError, match=r"fully_shard"):
        ek.optim.SGD([("w", flat)], lr=0.1, prune=PruneConfig())
