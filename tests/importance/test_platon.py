"""PLATON against plain Python loops in double, through the fused step and by itself."""

from __future__ import annotations

import pytest
import torch

from evoprune_kernels.importance import RULES, Platon, platon_alpha, window_ends
from tests.ops import test_adamw_step as adamw
from tests.ops import test_sgd_step as sgd
from tests.ops.steps import Problem
from tests.tolerance import assert_accurate

RULE = RULES["platon"]
assert isinstance(RULE, Platon)


def test_the_window_literal():
    assert [platon_alpha(t, 3) for t in range(1, 8)] == [1, 1 / 2, 1 / 3, 1, 1 / 2, 1 / 3, 1]
    assert [t for t in range(1, 31) if window_ends(t)] == [10, 20, 30]
    assert all(window_ends(t, 1) and platon_alpha(t, 1) == 1 for t in range(1, 5))
    for t, window in ((0, 10), (1, 0)):
        for function in (platon_alpha, window_ends):
            with pytest.raises(ValueError, match=f"got {t} and {window}"):
                function(t, window)


def closed_form(products: list[list[float]], window: int, beta1: float, beta2: float):
    """Sensitivity and uncertainty of every weight from all |w g| of all steps."""
    smooth, spread = [], []
    for series in products:
        s = u = 0.0
        for begin in range(0, len(series) - window + 1, window):
            mean = sum(series[begin : begin + window]) / window
            s = beta1 * s + (1 - beta1) * mean
            u = beta2 * u + (1 - beta2) * abs(mean - s)
        smooth.append(s)
        spread.append(u)
    return smooth, spread


@pytest.mark.parametrize("module", [adamw, sgd], ids=["adamw", "sgd"])
@pytest.mark.parametrize("window", [1, 7, 10])
def test_40_steps(module, window):
    """The fused step (rule "taylor", point "post", 1/k) and the windows, in fp64, with masks: w is not yet masked."""
    p = Problem.make([(3, 5), (8,)]).double_for_ops()
    states = {name: [torch.zeros_like(w) for w in p.params] for name in RULE.states}
    products: list[list[float]] = [[] for _ in range(23)]
    for t in range(1, 41):
        p.grads = [g.double() for g in p.draw_gradients(t)]
        dense = p.copy()
        dense.masks, dense.importances = [], []
        module.step(dense, "reference")
        options = {"rule": RULE.kernel, "point": RULE.default_point}
        module.step(p, "reference", alpha=platon_alpha(t, window), **options)
        for k, (w, g) in enumerate(
            zip(module.flat(dense.params), module.flat(p.grads), strict=True)
        ):
            products[k].append(abs(w.item() * g.item()))
        if window_ends(t, window):
            RULE.finish_window_(p.importances, *states.values())
    smooth, spread = closed_form(products, window, 0.85, 0.95)
    score = [
        RULE.score(i, w, sensitivity=s, uncertainty=u)
        for i, w, s, u in zip(p.importances, p.params, *states.values(), strict=True)
    ]
    for found, expected in (
        (states["sensitivity"], smooth),
        (states["uncertainty"], spread),
    ):
        truth = torch.tensor(expected, dtype=torch.float64)
        torch.testing.assert_close(module.flat(found), truth, rtol=1e-11, atol=1e-14)
    truth = torch.tensor(smooth, dtype=torch.float64) * torch.tensor(spread, dtype=torch.float64)
    torch.testing.assert_close(module.flat(score).double(), truth, rtol=1e-6, atol=1e-12)


@pytest.mark.parametrize("module", [adamw, sgd], ids=["adamw", "sgd"])
def test_the_cpu_kernel_follows_the_reference(module):
    ours, theirs = Problem.make(), Problem.make()
    truth = Problem.make().double()
    states = [
        [[torch.zeros_like(w) for w in p.importances] for _ in range(2)]
        for p in (ours, theirs, truth)
    ]
    for t in range(1, 21):
        options = {"rule": "taylor", "point": "post", "alpha": platon_alpha(t)}
        for p, impl in ((ours, "cpu"), (theirs, "reference"), (truth, None)):
            p.grads = [g.to(w.dtype) for g, w in zip(ours.draw_gradients(t), p.params, strict=True)]
            if impl:
                module.step(p, impl, **options)
            else:
                module.oracle(p, **{**module.BASE, **options})
        if window_ends(t):
            for p, (s, u) in zip((ours, theirs, truth), states, strict=True):
                RULE.finish_window_(p.importances, s, u)
    for k in range(2):
        mine, torchs, exact = (module.flat(s[k]) for s in states)
        assert_accurate(mine, exact, torchs)


def test_a_window_of_one_is_adalora():
    importance, smooth, spread = torch.tensor([2.0]), torch.tensor([1.0]), torch.tensor([4.0])
    RULE.finish_window_([importance], [smooth], [spread], beta1=0.5, beta2=0.75)
    assert (importance.item(), smooth.item(), spread.item()) == (2.0, 1.5, 3.125)


def test_finish_window_errors_hold_both_values_and_change_nothing():
    one, two = torch.ones(1), torch.ones(2)
    for lists, options, message in (
        (([one], [], [one]), {}, "expected 1 sensitivities, got 0"),
        (([one], [one], [one, one]), {}, "expected 1 uncertainties, got 2"),
        (([one], [one], [two]), {}, r"uncertainties\[0\] is \(2,\).*importance \(1,\)"),
        (([one], [one.double()], [one]), {}, r"sensitivities\[0\].*float64.*float32"),
        (([one], [one], [one]), {"beta1": 1.5}, r"0 <= beta1 <= 1, got 1\.5"),
        (([one], [one], [one]), {"beta2": float("nan")}, "beta2 <= 1, got nan"),
    ):
        with pytest.raises(ValueError, match=message):
            RULE.finish_window_(*lists, **options)
    assert one.item() == 1
    RULE.finish_window_([], [], [])
