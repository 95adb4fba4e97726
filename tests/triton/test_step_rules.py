"""What both optimizer steps in Triton share: where the importance looks, and that it rests where the lr is 0."""

from __future__ import annotations

import functools

import pytest
import torch

from tests.ops.steps import (
    POINT_OF,
    TINY_RATES,
    ZERO_RATES,
    Problem,
    alike,
    assert_no_importance_moves,
    assert_the_point,
    same_bits,
)
from tests.triton import test_adamw_step as adamw
from tests.triton import test_sgd_step as sgd

each_optimizer = pytest.mark.parametrize("step", [adamw.step, sgd.step], ids=["adamw", "sgd"])


@each_optimizer
@pytest.mark.parametrize("rule", POINT_OF)
@pytest.mark.parametrize("point", ["pre", "post"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_point_bitwise(run, step, rule, point, dtype):
    p = Problem.make([(33,), (3, 41)], dtype)
    p.draw_gradients(3)
    assert_the_point(functools.partial(step, run), p, rule, point)


@each_optimizer
@pytest.mark.parametrize("lr", ZERO_RATES.values(), ids=ZERO_RATES)
@pytest.mark.parametrize("rule", ["evolution", "taylor"])
def test_a_learning_rate_of_zero_moves_no_importance(run, step, rule, lr):
    p = Problem.make([(33,), (3, 41), (1030,)])
    p.draw_gradients(0)
    assert_no_importance_moves(functools.partial(step, run), p, alike, lr=lr, rule=rule, alpha=0.5)


@each_optimizer
@pytest.mark.parametrize("lr", TINY_RATES.values(), ids=TINY_RATES)
def test_any_other_learning_rate_does(run, step, lr):
    p = Problem.make([(33,)])
    p.draw_gradients(0)
    step(run, p, lr=lr, rule="evolution_abs", alpha=1.0)
    assert same_bits(p.importances, [w.abs() for w in p.params])
