"""``adamw_step_`` in Triton: every rule, dtype and switch against fp64, views, and what a scaler skips."""

from __future__ import annotations

import pytest
import torch

from evoprune_kernels.ops import _triton
from evoprune_kernels.ops.adamw_step.reference import adamw_step_reference
from tests.ops.steps import Problem, same_bits
from tests.ops.test_adamw_step import BASE, arguments, flat, oracle
from tests.tolerance import assert_accurate

SHAPES = [(), (0,), (1,), (7,), (33,), (3, 41), (1024,), (2500,)]
DEFAULTS = {"amsgrad": False, "maximize": False, "rule": "none", "alpha": 0.0}
VARIANTS = {
    "plain": {},
    "evolution": {"rule": "evolution", "alpha": 0.3},
    "taylor": {"rule": "taylor", "alpha": 0.8, "amsgrad": True},
    "magnitude": {"rule": "magnitude", "maximize": True, "beta1": 0.3},
    "abs": {"rule": "evolution_abs", "alpha": 0.3, "point": "pre"},
    "platon": {"rule": "taylor", "alpha": 0.3, "point": "post"},
    "movement": {"rule": "movement", "alpha": 0.8, "point": "post", "sparse_decay": 0.2},
}


def step(run, p, **options):
    name = "adamw_step_.tensor_lr" if isinstance(options.get("lr"), torch.Tensor) else "adamw_step_"
    run(name, *arguments(p), **{**BASE, **DEFAULTS, **options})


def assert_steps_agree(ours, truth, torchs):
    """By the tolerance law, list by list."""
    for name in ("params", "first", "second", "largest", "importances", "grads"):
        mine, exact, theirs = (flat(getattr(p, name)) for p in (ours, truth, torchs))
        assert_accurate(mine, exact, theirs)
    assert same_bits(ours.steps, torchs.steps)


@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize("dtype, state", [
    (torch.float32, torch.float32), (torch.bfloat16, torch.bfloat16), (torch.bfloat16, torch.float32),
])  # fmt: skip
def test_steps_against_fp64(run, variant, dtype, state):
    options = VARIANTS[variant]
    ours = Problem.make(SHAPES, dtype, state)
    for t in range(2):
        ours.draw_gradients(t)
        truth, theirs = ours.double(), ours.copy()  # one step at a time: no bfloat16 error adds up
        oracle(truth, **{**BASE, **DEFAULTS, **options})
        adamw_step_reference(*arguments(theirs), **{**BASE, **DEFAULTS, **options})
        step(run, ours, **options)
        if variant != "taylor":
            assert flat(ours.largest).count_nonzero() == 0
        assert_steps_agree(ours, truth, theirs)


def test_no_masks_mixed_dtypes_and_views(run):
    memory = torch.randn(2000)
    p = Problem.make([(1500,), (60,), (6, 5)])
    p.params[0] = memory[1:1501]  # unaligned
    for name in ("params", "grads", "first", "second", "largest", "importances"):
        p.draw_gradients(0)
        tensors = getattr(p, name)
        tensors[2] = tensors[2].t().contiguous().t()  # dense, in another order
    p.masks = []
    p.params[1], p.first[1] = p.params[1].bfloat16(), p.first[1].bfloat16()
    p.second[1], p.largest[1] = p.second[1].bfloat16(), p.largest[1].bfloat16()
    grads = p.draw_gradients(3)
    grads[2] = grads[2].t().contiguous().t()
    p.largest = []
    theirs = p.copy()
    theirs.params[0] = memory[1:1501].clone()
    kept = memory[0].item(), memory[1501:].tolist()
    step(run, p, rule="evolution", alpha=0.5)
    adamw_step_reference(
        *arguments(theirs), **{**BASE, **DEFAULTS, "rule": "evolution", "alpha": 0.5}
    )
    for mine, other in zip(p.params, theirs.params, strict=True):
        torch.testing.assert_close(mine, other)
    assert (memory[0].item(), memory[1501:].tolist()) == kept


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
    _, unfit = _triton.implementation("adamw_step_")
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
    adamw_step_reference(*arguments(theirs), **{**BASE, **DEFAULTS, **options})
    for mine, other in zip(p.written(), theirs.written(), strict=True):
        torch.testing.assert_close(mine, other, rtol=1e-5, atol=1e-6)


def test_masked_weights_are_zero_even_where_the_step_is_nan(run):
    p = Problem.make([(40,)])
    p.draw_gradients(0)[0][:] = float("nan")
    step(run, p)
    assert same_bits([p.params[0][~p.masks[0]]], [torch.zeros(int((~p.masks[0]).sum()))])
    assert p.params[0][p.masks[0]].isnan().all()


def test_two_launches_move_every_byte_once(simulated):
    p = Problem.make([(2048,), (4096,)])
    p.draw_gradients(0)
    step(simulated.call, p, rule="evolution", alpha=0.3)
    assert [name for name, _ in simulated.launches] == ["adamw_prepare_kernel", "adamw_step_kernel"]
    counts = simulated.launches[1][1]
    elements = 2048 + 4096
    assert counts["global.store.bytes"] == 16 * elements == counts["global.store.sectors"] * 32
    assert counts["global.load.footprint"] - 21 * elements < 1024


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_no_spills(no_spills, dtype):
    p = Problem.make([(2048,), (4096,)], dtype, torch.float32)
    p.draw_gradients(0)
    scaler = {"grad_scale": torch.ones(()), "found_inf": torch.zeros(())}
    no_spills(
        "adamw_step_",
        *arguments(p),
        **BASE,
        amsgrad=True,
        maximize=False,
        rule="movement",
        alpha=0.3,
        point="post",
        sparse_decay=0.1,
        **scaler,
    )
