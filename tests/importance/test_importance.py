"""Importance rules and schedules: literal values, and the running average against its closed form."""

from __future__ import annotations

import pytest
import torch

from evoprune_kernels.importance import RULES, alpha, get_rule, parse_averaging

WEIGHTS = {
    "linear": lambda j: j,
    "mean": lambda j: 1.0,
    "sqrt": lambda j: j**0.5,
    "power:2": lambda j: j**2.0,
    "power:0": lambda j: 1.0,
    "ewma": lambda j: 0.9**-j,
}


@pytest.mark.parametrize("averaging", WEIGHTS)
def test_recursion_is_the_weighted_mean(averaging):
    values = torch.randn(60, dtype=torch.float64)
    average = torch.full((), 123.0, dtype=torch.float64)  # alpha_1 = 1 forgets the start
    for t in range(1, 61):
        average += alpha(averaging, t, beta=0.9) * (values[t - 1] - average)
        weights = torch.tensor(
            [WEIGHTS[averaging](j) for j in range(1, t + 1)], dtype=torch.float64
        )
        expected = (weights * values[:t]).sum() / weights.sum()
        torch.testing.assert_close(average, expected, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("averaging", WEIGHTS)
def test_alpha_does_not_depend_on_what_was_asked_before(averaging):
    ascending = [alpha(averaging, t) for t in range(1, 30)]
    descending = [alpha(averaging, t) for t in range(29, 0, -1)]
    assert ascending == descending[::-1]
    assert ascending[0] == 1.0
    assert all(0 < a <= 1 for a in ascending)


def test_ewma_far_out_is_one_minus_beta():
    assert alpha("ewma", 10**6, beta=0.99) == pytest.approx(0.01, rel=1e-12)
    assert alpha("ewma", 3, beta=1 - 1e-12) == pytest.approx(1 / 3, rel=1e-3)
    assert alpha("ewma", 5, beta=0.0) == 1.0


@pytest.mark.parametrize(
    "text", ["cubic", "power", "power:x", "power:-1", "power:nan", "linear:2", ""]
)
def test_rejects_unknown_averaging(text):
    with pytest.raises(ValueError, match="averaging"):
        parse_averaging(text)


def test_rejects_bad_t_and_beta():
    with pytest.raises(ValueError, match="got 0"):
        alpha("linear", 0)
    with pytest.raises(ValueError, match=r"got 1\.0"):
        alpha("ewma", 2, beta=1.0)


def test_rules_literal():
    old, new, grad = torch.tensor([2.0, -1.0]), torch.tensor([1.0, -3.0]), torch.tensor([-1.0, 0.5])
    state = {name: torch.tensor([0.0, 4.0]) for name in RULES}
    for name, rule in RULES.items():
        rule.update(state[name], old=old, new=new, grad=grad, alpha=0.5)
    assert state["magnitude"].tolist() == [0.0, 4.0]
    assert state["evolution"].tolist() == [0.5, 0.5]
    assert state["taylor"].tolist() == [1.0, 2.25]
    assert get_rule("magnitude").score(None, new).tolist() == [1.0, 3.0]
    assert get_rule("evolution").score(-state["evolution"], new).tolist() == [0.5, 0.5]
    assert get_rule("taylor").score(state["taylor"], new).tolist() == [1.0, 2.25]


def test_a_weight_that_oscillates_scores_low():
    rule, average = get_rule("evolution"), torch.zeros(2)
    for t in range(1, 101):
        w = torch.tensor([0.5, (-1.0) ** t])
        rule.update(average, old=w, new=w, grad=w, alpha=alpha("mean", t))
    score = rule.score(average, w)
    assert score[0] > 0.49 and score[1] < 0.01


def test_missing_state_and_unknown_rule():
    with pytest.raises(ValueError, match=r"'evolution'.*None"):
        get_rule("evolution").score(None, torch.ones(2))
    with pytest.raises(ValueError, match="'fisher'"):
        get_rule("fisher")


def test_bf16_weights_keep_an_fp32_state():
    rule, average = get_rule("evolution"), torch.zeros(3)
    w = torch.randn(3).bfloat16()
    rule.update(average, old=w, new=w, grad=w, alpha=0.3)
    torch.testing.assert_close(average, 0.3 * w.float())
    assert rule.score(average, w).dtype == torch.float32
