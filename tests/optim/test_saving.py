"""Everything is restorable: state dicts both ways with torch, deepcopy, pickle, distributed checkpoints."""

from __future__ import annotations

import copy
import io
import pickle

import pytest
import torch
from torch.distributed.checkpoint.state_dict import (
    StateDictOptions,
    get_optimizer_state_dict,
    set_optimizer_state_dict,
)

import evoprune_kernels as ek

PAIRS = pytest.mark.parametrize(
    ("ours", "theirs", "kwargs"),
    [
        pytest.param(ek.optim.AdamW, torch.optim.AdamW, {"lr": 0.05}, id="adamw"),
        pytest.param(
            ek.optim.AdamW, torch.optim.AdamW, {"lr": 0.05, "amsgrad": True}, id="amsgrad"
        ),
        pytest.param(ek.optim.SGD, torch.optim.SGD, {"lr": 0.05, "momentum": 0.9}, id="sgd"),
    ],
)
CONFIG = ek.PruneConfig("2:4", start=2, end=10, every=2)


def build(optimizer_class, dtype=torch.float32, seed=0, **kwargs):
    torch.manual_seed(seed)
    model = torch.nn.Sequential(torch.nn.Linear(16, 8), torch.nn.Linear(8, 8)).to(dtype)
    return model, optimizer_class(model.parameters(), **kwargs)


def step(model, optimizer, seeds):
    for seed in seeds:
        generator = torch.Generator().manual_seed(seed)
        for p in model.parameters():
            p.grad = torch.randn(p.shape, generator=generator).to(p.dtype)
        optimizer.step()


def contents(model, optimizer):
    """Every tensor of the run by name, and the groups without their parameters."""
    tensors = {f"param{i}": p.detach() for i, p in enumerate(model.parameters())}
    for i, p in enumerate(model.parameters()):
        tensors |= {f"state{i}.{k}": v for k, v in optimizer.state[p].items()}
    groups = [{k: v for k, v in g.items() if k != "params"} for g in optimizer.param_groups]
    return tensors, groups


def assert_same(a, b):
    (left, left_groups), (right, right_groups) = contents(*a), contents(*b)
    assert left.keys() == right.keys()
    for name, value in left.items():
        assert value.dtype == right[name].dtype, name
        assert torch.equal(value, right[name]), name
    assert left_groups == right_groups


def through_file(value, weights_only=True):
    file = io.BytesIO()
    torch.save(value, file)
    file.seek(0)
    return torch.load(file, weights_only=weights_only)


@PAIRS
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("importance", ["evolution", "taylor", "magnitude"])
def test_resuming_gives_the_same_bits(ours, theirs, kwargs, dtype, importance):
    config = ek.PruneConfig("2:4", importance=importance, start=2, end=10, every=2)
    model, optimizer = build(ours, dtype, prune=config, **kwargs)
    step(model, optimizer, range(5))
    saved = through_file({"model": model.state_dict(), "optimizer": optimizer.state_dict()})
    other, resumed = build(ours, dtype, seed=9, prune=config, **kwargs)
    other.load_state_dict(saved["model"])
    resumed.load_state_dict(saved["optimizer"])
    assert_same((model, optimizer), (other, resumed))
    step(model, optimizer, range(5, 12))
    step(other, resumed, range(5, 12))
    assert_same((model, optimizer), (other, resumed))
    assert resumed.sparsity_report()["sparsity"] == 0.5
    state = resumed.state[other[0].weight]
    assert state["mask"].dtype == torch.bool
    assert importance == "magnitude" or state["importance"].dtype == torch.float32


@PAIRS
@pytest.mark.parametrize("how", [copy.deepcopy, lambda x: pickle.loads(pickle.dumps(x))])
def test_deepcopy_and_pickle(ours, theirs, kwargs, how):
    model, optimizer = build(ours, prune=CONFIG, fused=True, **kwargs)
    step(model, optimizer, range(5))
    other, resumed = how((model, optimizer))
    assert_same((model, optimizer), (other, resumed))
    assert resumed._step_supports_amp_scaling and resumed.defaults == optimizer.defaults
    resumed.load_state_dict(copy.deepcopy(optimizer.state_dict()))
    step(model, optimizer, range(5, 12))
    step(other, resumed, range(5, 12))
    assert_same((model, optimizer), (other, resumed))
    late = torch.nn.Parameter(torch.zeros(4, 4))
    resumed.add_param_group({"params": [late]})
    assert resumed.param_groups[-1]["prune"] == CONFIG.to_dict()


@PAIRS
@pytest.mark.parametrize("prune", [None, CONFIG])
@pytest.mark.parametrize("fused", [False, True])
def test_checkpoints_of_torch(ours, theirs, kwargs, prune, fused):
    model, optimizer = build(theirs, fused=fused, **kwargs)
    step(model, optimizer, range(3))
    other, resumed = build(ours, seed=9, prune=prune, fused=fused, **kwargs)
    other.load_state_dict(model.state_dict())
    resumed.load_state_dict(through_file(optimizer.state_dict()))
    expected = None if prune is None else prune.to_dict()
    assert resumed.param_groups[0]["prune"] == expected, (
        "a checkpoint of torch has no say in pruning"
    )
    step(other, resumed, [3])
    step(model, optimizer, [3])
    for a, b in zip(model.parameters(), other.parameters(), strict=True):
        torch.testing.assert_close(a, b, atol=1e-6, rtol=1e-6)
        assert prune is not None or torch.equal(a, b)
    step(other, resumed, range(4, 20))
    assert resumed.sparsity_report()["sparsity"] == (0.0 if prune is None else 0.5)


@PAIRS
@pytest.mark.parametrize("prune", [None, CONFIG])
def test_torch_loads_our_checkpoints(ours, theirs, kwargs, prune):
    model, optimizer = build(ours, prune=prune, **kwargs)
    step(model, optimizer, range(5))
    other, resumed = build(theirs, seed=9, **kwargs)
    other.load_state_dict(model.state_dict())
    resumed.load_state_dict(through_file(optimizer.state_dict()))
    reference, plain = build(theirs, seed=9, **kwargs)
    reference.load_state_dict(model.state_dict())
    bare = through_file(optimizer.state_dict())
    for state in bare["state"].values():
        state.pop("importance", None), state.pop("mask", None)
    plain.load_state_dict(bare)
    for run in ((other, resumed), (reference, plain)):
        step(*run, range(5, 8))
    for a, b in zip(other.parameters(), reference.parameters(), strict=True):
        assert torch.equal(a, b)


@PAIRS
def test_older_state_dicts(ours, theirs, kwargs):
    """Flags that did not exist yet are absent, and the step was a Python number."""
    model, optimizer = build(ours, prune=CONFIG, **kwargs)
    step(model, optimizer, range(4))
    old = copy.deepcopy(optimizer.state_dict())
    for group in old["param_groups"]:
        for flag in ("foreach", "differentiable", "maximize", "capturable", "fused", "prune",
                     "prune_step", "prune_refreshes"):  # fmt: skip
            group.pop(flag, None)
    for state in old["state"].values():
        if "exp_avg" in state:
            state["step"] = float(state["step"])
    other, resumed = copy.deepcopy((model, optimizer))
    resumed.load_state_dict(old)
    step(other, resumed, range(4, 6))
    step(model, optimizer, range(4, 6))
    for a, b in zip(model.parameters(), other.parameters(), strict=True):
        assert torch.equal(a, b)


def test_pickles_from_before_prune_existed():
    model, optimizer = build(ek.optim.AdamW)
    step(model, optimizer, range(2))
    state = optimizer.__getstate__()
    state["defaults"] = {k: v for k, v in state["defaults"].items() if k != "prune"}
    for group in state["param_groups"]:
        for key in ("prune", "prune_step", "prune_refreshes"):
            del group[key]
    old = ek.optim.AdamW.__new__(ek.optim.AdamW)
    old.__setstate__(state)
    step(model, old, range(2))
    old.add_param_group({"params": [torch.nn.Parameter(torch.zeros(2, 2))]})


def test_hostile_states_are_refused_before_anything_changes():
    model, optimizer = build(ek.optim.AdamW, prune=CONFIG)
    step(model, optimizer, range(3))
    other, resumed = copy.deepcopy((model, optimizer))
    broken = copy.deepcopy(optimizer.state_dict())
    broken["state"][0]["mask"] = torch.ones(3, 3, dtype=torch.bool)
    with pytest.raises(ValueError, match=r"'mask' has shape \(3, 3\), its parameter \(8, 16\)"):
        resumed.load_state_dict(broken)
    assert_same((model, optimizer), (other, resumed))
    assert not resumed._optimizer_load_state_dict_pre_hooks, "a hook was left behind"


def test_which_prune_config_wins():
    other = ek.PruneConfig("1:4", start=3)
    for saved, current, expected in [
        (None, CONFIG, CONFIG),  # pruning starts where training resumes
        (CONFIG, None, CONFIG),
        (CONFIG, CONFIG, CONFIG),
        (other, CONFIG, other),
    ]:
        model, optimizer = build(ek.optim.AdamW, prune=saved)
        step(model, optimizer, range(4))
        twin, resumed = build(ek.optim.AdamW, prune=current)
        twin.load_state_dict(model.state_dict())
        state = copy.deepcopy(optimizer.state_dict())
        if saved is other:
            with pytest.warns(UserWarning, match=r"'1:4'.*made with .*'2:4'"):
                resumed.load_state_dict(state)
        else:
            resumed.load_state_dict(state)
        assert resumed.param_groups[0]["prune"] == expected.to_dict()
        assert resumed.param_groups[0]["prune_step"] == (0 if saved is None else 4)
    broken = copy.deepcopy(optimizer.state_dict())
    broken["param_groups"][0]["prune"]["pattern"] = "9:4"
    with pytest.raises(ValueError, match="9:4"):
        resumed.load_state_dict(broken)


def test_load_hooks_fire_once_and_see_plain_tensors():
    model, optimizer = build(ek.optim.AdamW, torch.bfloat16, prune=CONFIG)
    step(model, optimizer, range(3))
    saved, calls = copy.deepcopy(optimizer.state_dict()), []

    def before(opt, state_dict):
        calls.append("before")
        assert all(
            isinstance(v, torch.Tensor) for s in state_dict["state"].values() for v in s.values()
        )

    def after(opt):
        calls.append("after")
        assert opt.state[model[0].weight]["mask"].dtype == torch.bool

    optimizer.register_load_state_dict_pre_hook(before)
    optimizer.register_load_state_dict_post_hook(after)
    optimizer.register_state_dict_pre_hook(lambda opt: calls.append("save"))
    optimizer.register_state_dict_post_hook(lambda opt, sd: calls.append("saved"))
    optimizer.load_state_dict(saved)
    optimizer.state_dict()
    assert calls == ["before", "after", "save", "saved"]
    assert list(optimizer.state_dict()) == ["state", "param_groups"]


# distributed checkpoints


@PAIRS
def test_the_phantom_step_changes_nothing_that_pruning_sees(ours, theirs, kwargs):
    """torch.distributed.checkpoint calls ``step()`` on a fresh optimizer, only to make its state."""
    model, optimizer = build(ours, prune=CONFIG, **kwargs)
    before = copy.deepcopy(model.state_dict())
    get_optimizer_state_dict(model, optimizer)
    assert all(torch.equal(before[k], v) for k, v in model.state_dict().items())
    for p in (model[0].weight, model[1].weight):
        assert optimizer.state[p]["mask"].all() and not optimizer.state[p]["importance"].any()
    assert optimizer.param_groups[0]["prune_step"] == 0 and not optimizer.masks()
    fresh_model, fresh = build(ours, prune=CONFIG, **kwargs)
    step(model, optimizer, range(1, 12))
    step(fresh_model, fresh, range(1, 12))
    assert torch.equal(
        optimizer.state[model[0].weight]["importance"] != 0,
        fresh.state[fresh_model[0].weight]["importance"] != 0,
    )
    assert optimizer.param_groups[0]["prune_step"] == fresh.param_groups[0]["prune_step"]


@PAIRS
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("flat", [False, True])
def test_distributed_checkpoint_round_trip(ours, theirs, kwargs, dtype, flat):
    options = StateDictOptions(flatten_optimizer_state_dict=flat)
    model, optimizer = build(ours, dtype, prune=CONFIG, **kwargs)
    step(model, optimizer, range(5))
    saved = copy.deepcopy(get_optimizer_state_dict(model, optimizer, options=options))
    other, resumed = build(ours, dtype, seed=9, prune=CONFIG, **kwargs)
    other.load_state_dict(model.state_dict())
    template = get_optimizer_state_dict(other, resumed, options=options)
    assert template.keys() == saved.keys(), "what a checkpoint reader fills in lacks something"
    set_optimizer_state_dict(other, resumed, saved, options=options)
    assert_same((model, optimizer), (other, resumed))
    step(model, optimizer, range(5, 12))
    step(other, resumed, range(5, 12))
    assert_same((model, optimizer), (other, resumed))


@pytest.mark.filterwarnings("ignore::UserWarning", "ignore::FutureWarning")
@pytest.mark.parametrize("flat", [False, True])
def test_distributed_checkpoint_on_disk(flat, tmp_path):
    """Named groups, some pruned and some not, bf16 parameters, through files."""
    import torch.distributed.checkpoint as dcp

    def build_grouped(seed):
        model, _ = build(torch.optim.SGD, torch.bfloat16, seed=seed, lr=0.1)
        return model, ek.optim.AdamW(ek.optim.prunable_groups(model, CONFIG), lr=0.05)

    options = StateDictOptions(flatten_optimizer_state_dict=flat)
    model, optimizer = build_grouped(0)
    step(model, optimizer, range(5))
    dcp.save(
        {"o": get_optimizer_state_dict(model, optimizer, options=options)}, checkpoint_id=tmp_path
    )
    other, resumed = build_grouped(9)
    other.load_state_dict(model.state_dict())
    target = {"o": get_optimizer_state_dict(other, resumed, options=options)}
    dcp.load(target, checkpoint_id=tmp_path)
    set_optimizer_state_dict(other, resumed, target["o"], options=options)
    assert_same((model, optimizer), (other, resumed))
    step(model, optimizer, range(5, 12))
    step(other, resumed, range(5, 12))
    assert_same((model, optimizer), (other, resumed))
