"""``sgd_step_`` in Triton: every rule, dtype and switch against fp64, the first step, and what a scaler skips."""

from __future__ import annotations

import pytest
import torch

from evoprune_kernels.ops import _triton
from evoprune_kernels.ops.sgd_step.reference import sgd_step_reference
from tests.ops.steps import Problem, same_bits
from tests.ops.test_sgd_step import BASE, arguments, flat, oracle, uninitialised
from tests.tolerance import assert_accurate

SHAPES = [(), (0,), (1,), (7,), (33,), (3, 41), (1024,), (2500,)]
DEFAULTS = {"nesterov": False, "maximize": False, "rule": "none", "alpha": 0.0}
VARIANTS = {
    "plain": {"momentum": 0.0, "weight_decay": 0.0},
    "dampening": {"dampening": 0.3, "rule": "evolution", "alpha": 0.3},
    "nesterov": {"nesterov": True, "rule": "taylor", "alpha": 0.8},
    "maximize": {"maximize": True, "rule": "magnitude"},
    "abs": {"rule": "evolution_abs", "alpha": 0.3, "point": "pre"},
    "platon": {"rule": "taylor", "alpha": 0.3, "point": "post", "momentum": 0.0},
    "movement": {"rule": "movement", "alpha": 0.8, "sparse_decay": 0.2},
}


def step(run, p, **options):
    name = "sgd_step_.tensor_lr" if isinstance(options.get("lr"), torch.Tensor) else "sgd_step_"
    run(name, *arguments(p), **{**BASE, **DEFAULTS, **options})


@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize("dtype, state", [
    (torch.float32, torch.float32), (torch.bfloat16, torch.bfloat16), (torch.bfloat16, torch.float32),
])  # fmt: skip
def test_steps_against_fp64(run, variant, dtype, state):
    options = {**BASE, **DEFAULTS, **VARIANTS[variant]}
    ours = uninitialised(Problem.make(SHAPES, dtype, state))
    for t in range(2):
        ours.draw_gradients(t)
        truth, theirs = ours.double(), ours.copy()  # one step at a time: no bfloat16 error adds up
        oracle(truth, **options)
        sgd_step_reference(*arguments(theirs), **options)
        step(run, ours, **options)
        for name in ("params", "first", "importances", "grads"):
            if name != "first" or options["momentum"]:
                assert_accurate(*(flat(getattr(p, name)) for p in (ours, truth, theirs)))
        assert same_bits(ours.steps, theirs.steps)


def test_wrong_options_launch_nothing(run):
    p = Problem.make([(33,)])
    p.draw_gradients(0)
    before = p.copy()
    for options, message in (
        ({"rule": "fisher"}, "'movement'.*got 'fisher'"),
        ({"point": "mid"}, "got 'mid'"),
        ({"sparse_decay": -1.0}, r"got -1\.0"),
    ):
        with pytest.raises(ValueError, match=message):
            step(run, p, **options)
    p.importances = [t.bfloat16() for t in p.importances]
    _, unfit = _triton.implementation("sgd_step_")
    assert "got torch.bfloat16" in unfit(*arguments(p), **{**BASE, **DEFAULTS})
    assert same_bits(p.params, before.params)


def test_the_scaler_and_a_tensor_lr(run):
    p = Problem.make(SHAPES)
    p.draw_gradients(0, scale=64.0)
    theirs, untouched = p.copy(), p.copy()
    options = {
        "grad_scale": torch.tensor(64.0),
        "found_inf": torch.tensor(1.0),
        "lr": torch.tensor(0.02),
    }
    step(run, p, **options)
    assert same_bits(p.written(), untouched.written())
    options["found_inf"] = torch.tensor(0.0)
    step(run, p, **options)
    sgd_step_reference(*arguments(theirs), **{**BASE, **DEFAULTS, **options})
    for mine, other in zip(p.written(), theirs.written(), strict=True):
        torch.testing.assert_close(mine, other, rtol=1e-5, atol=1e-6)


def test_two_launches_move_every_byte_once(simulated):
    p = Problem.make([(2048,), (4096,)])
    p.draw_gradients(0)
    step(simulated.call, p)
    assert [name for name, _ in simulated.launches] == ["sgd_prepare_kernel", "sgd_step_kernel"]
    counts = simulated.launches[1][1]
    assert counts["global.store.bytes"] == 8 * 6144 == counts["global.store.sectors"] * 32


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_no_spills(no_spills, dtype):
    p = Problem.make([(2048,), (4096,)], dtype, torch.float32)
    p.draw_gradients(0)
    scaler = {"grad_scale": torch.ones(()), "found_inf": torch.zeros(())}
    no_spills(
        "sgd_step_",
        *arguments(p),
        **BASE,
        nesterov=True,
        maximize=False,
        rule="movement",
        alpha=0.3,
        point="post",
        sparse_decay=0.1,
        **scaler,
    )
