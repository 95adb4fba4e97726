"""The short way of a step to its kernel: the dispatcher's bits, and the dispatcher for all that is odd."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from evoprune_kernels import _ext, ops
from evoprune_kernels.ops import _entries
from tests.ops.steps import Problem, same_bits

pytestmark = pytest.mark.skipif(_entries._reader() is None, reason="needs the native libraries")
ADAMW = {"lr": 0.01, "beta1": 0.9, "beta2": 0.999, "eps": 1e-8, "weight_decay": 0.1}


def lists(p: Problem) -> tuple[list[Tensor], ...]:
    return p.params, p.grads, p.first, p.second, p.largest, p.importances, p.masks, p.steps


def adamw(p: Problem, **kwargs) -> None:
    ops.adamw_step_(
        *lists(p), **{**ADAMW, "amsgrad": True, "rule": "taylor", "alpha": 0.3, **kwargs}
    )


def sgd(p: Problem, **kwargs) -> None:
    options = {"lr": 0.01, "momentum": 0.9, "rule": "evolution", "alpha": 0.3, **kwargs}
    ops.sgd_step_(p.params, p.grads, p.first, p.importances, p.masks, p.steps, **options)


@pytest.fixture
def taken(monkeypatch) -> list[bool]:
    """Whether each step took the short way."""
    log: list[bool] = []
    collect = _entries.collect

    def spy(*args):
        entries = collect(*args)
        log.append(entries is not None)
        return entries

    monkeypatch.setattr(_entries, "collect", spy)
    return log


def problem(**kwargs) -> Problem:
    p = Problem.make(**kwargs)
    p.draw_gradients(0)
    return p


@pytest.mark.parametrize("step", [adamw, sgd])
@pytest.mark.parametrize(
    "dtype, state",
    [(torch.float32, None), (torch.bfloat16, torch.float32), (torch.bfloat16, None)],
    ids=["fp32", "bf16-fp32", "bf16"],
)
def test_both_ways_give_the_same_bits(step, dtype, state, taken, monkeypatch):
    short = problem(dtype=dtype, state=state)
    usual = short.copy()
    options = {"grad_scale": torch.tensor(4.0), "found_inf": torch.zeros(1), "maximize": True}
    options |= (
        {"point": "pre", "sparse_decay": 0.1} if dtype == torch.float32 else {"point": "post"}
    )
    for _ in range(3):
        step(short, **options)
    monkeypatch.setattr(_entries, "_reader", lambda: None)
    for _ in range(3):
        step(usual, **options)
    assert taken == [True] * 3 + [False] * 3
    assert same_bits(short.written(), usual.written())


def columns(p: Problem) -> None:
    p.grads = [g.unsqueeze(-1).expand(*g.shape, 2).contiguous()[..., 0] for g in p.grads]


class Named(torch.Tensor):
    pass


def subclass(p: Problem) -> None:
    p.grads = [g.as_subclass(Named) for g in p.grads]


def tuples(p: Problem) -> None:
    p.grads = tuple(p.grads)


@pytest.mark.parametrize("change", [columns, subclass, tuples])
@pytest.mark.parametrize("step", [adamw, sgd])
def test_what_is_odd_goes_the_usual_way(step, change, taken):
    expected = problem(shapes=[(4, 6), (3, 5)])
    odd = expected.copy()
    change(odd)
    step(expected)
    step(odd)
    assert taken == [True, False]
    odd.grads = expected.grads
    assert same_bits(odd.written(), expected.written())


def test_a_lazy_negation_is_not_read_as_its_opposite(taken):
    p = problem()
    p.grads = [torch._neg_view(-g) for g in p.grads]
    before = p.copy()
    with pytest.raises(RuntimeError, match="negation"):
        adamw(p)
    assert taken == [False] and same_bits(p.params, before.params)


def test_under_a_mode_or_a_profiler_the_op_is_seen(taken):
    with torch.profiler.profile() as profile:
        adamw(problem())
    assert "evoprune::adamw_step_" in {event.name for event in profile.events()}
    with FlopCounterMode(display=False):
        adamw(problem())
    with torch.device("cpu"):
        adamw(problem())
    assert taken == [False] * 3


def test_nothing_is_remembered():
    """Data, gradients and states may be replaced between two steps."""
    p = problem(shapes=[(4, 6)])
    weight = p.params[0]
    adamw(p)
    expected = p.copy()
    weight.data = weight.data.clone()
    p.first[0] = p.first[0].clone()
    p.draw_gradients(1)
    expected.draw_gradients(1)
    adamw(p)
    adamw(expected)
    assert same_bits(p.written(), expected.written())


@pytest.mark.parametrize("step", [adamw, sgd])
@pytest.mark.parametrize("way", ["short", "usual"])
@pytest.mark.parametrize("name", ["grad_scale", "found_inf"])
def test_a_wrong_scaler_changes_nothing(step, way, name, monkeypatch):
    if way == "usual":
        monkeypatch.setattr(_entries, "_reader", lambda: None)
    p = problem()
    before = p.copy()
    with pytest.raises(RuntimeError, match=rf"{name} of 1 element.*\[2\]"):
        step(p, **{name: torch.ones(2)})
    assert same_bits(p.written(), before.written())


def test_reader_refuses_what_is_no_tuple_of_eight_lists():
    with pytest.raises(ValueError, match="tuple of 8 lists"):
        _entries._reader().collect(([],) * 7)
    assert _ext.native is not None and _entries._reader().collect(([], 3) + ([],) * 6) is None


@pytest.mark.parametrize("step", [adamw, sgd])
def test_versions_advance(step, taken):
    p = problem(shapes=[(5,)] * 70)
    before = [t._version for t in p.params]
    step(p)
    assert taken == [True]
    assert all(t._version > v for t, v in zip(p.params, before, strict=True))


def test_another_version_of_the_exchange_leaves_the_dispatcher_and_its_reason(monkeypatch):
    def refuse(*_):
        raise ValueError("expected DLPack 1, got another major version")

    monkeypatch.setattr(_ext.native, "StepReader", refuse)
    monkeypatch.setattr(_ext, "reasons", dict(_ext.reasons))
    _entries._reader.cache_clear()
    try:
        p = Problem.make()
        p.draw_gradients(0)
        assert _entries.collect("adamw_step_", None, lists(p), 0.01, None, None) is None
        assert _ext.reasons["StepReader"] == "expected DLPack 1, got another major version"
    finally:
        monkeypatch.undo()
        _entries._reader.cache_clear()
