"""Importance rules and schedules: literal values, and the running averages against their closed forms."""

from __future__ import annotations

import pytest
import torch

from evoprune_kernels.importance import RULES, alpha, averaged_step, get_rule, parse_averaging

WEIGHTS = {
    "linear": lambda j: j,
    "mean": lambda j: 1.0,
    "sqrt": lambda j: j**0.5,
    "power:2": lambda j: j**2.0,
    "power:0": lambda j: 1.0,
    "ewma": lambda j: 0.9**-j,
}
#: rule -> (kernel, point, states of its own, states of the optimizer)
TABLE = {
    "magnitude": ("none", "post", (), ()),
    "evolution": ("evolution", "post", (), ()),
    "evolution_abs": ("evolution_abs", "post", (), ()),
    "taylor": ("taylor", "pre", (), ()),
    "movement": ("movement", "pre", (), ()),
    "platon": ("taylor", "post", ("sensitivity", "uncertainty"), ()),
    "fisher": ("none", "post", (), ("exp_avg_sq",)),
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
    for t, start in ((0, 1), (1, 0)):
        with pytest.raises(ValueError, match=f"got {t} and {start}"):
            averaged_step(t, start)


def test_the_average_of_the_last_steps_starts_at_one():
    """The last 4 of 10 steps: the mean of x_7 .. x_10, whatever came before."""
    average = torch.full((), 123.0, dtype=torch.float64)
    for t in range(1, 11):
        n = averaged_step(t, start=10 - 4 + 1)
        assert n == (0, 0, 0, 0, 0, 0, 1, 2, 3, 4)[t - 1]
        if n:
            average += alpha("mean", n) * (t**2 - average)
    assert average.item() == pytest.approx((49 + 64 + 81 + 100) / 4, rel=1e-12)


def test_every_rule_says_what_it_needs():
    found = {
        name: (rule.kernel, rule.default_point, rule.states, rule.reads)
        for name, rule in RULES.items()
    }
    assert found == TABLE
    for name, rule in RULES.items():
        assert get_rule(name) is rule
        assert rule.has_state == (rule.kernel != "none")


def test_rules_literal():
    weight, grad = torch.tensor([1.0, -3.0]), torch.tensor([-1.0, 0.5])
    state = {name: torch.tensor([0.0, 4.0]) for name in RULES}
    for name, rule in RULES.items():
        rule.update(state[name], weight=weight, grad=grad, alpha=0.5)
    assert {name: s.tolist() for name, s in state.items()} == {
        "magnitude": [0.0, 4.0],
        "evolution": [0.5, 0.5],
        "evolution_abs": [0.5, 3.5],
        "taylor": [0.5, 2.75],
        "movement": [0.5, 2.75],
        "platon": [0.5, 2.75],
        "fisher": [0.0, 4.0],
    }
    away = torch.tensor([0.0, 4.0])
    get_rule("movement").update(away, weight=weight, grad=-grad, alpha=0.5)
    assert away.tolist() == [-0.5, 1.25]


def test_scores_literal():
    weight, average = torch.tensor([1.0, -3.0]), torch.tensor([-2.0, 0.25])
    states = {
        "sensitivity": torch.tensor([0.5, 2.0]),
        "uncertainty": torch.tensor([4.0, 0.25]),
        "exp_avg_sq": torch.tensor([0.5, 2.0]),
    }
    found = {
        name: rule.score(average if rule.has_state else None, weight, **states).tolist()
        for name, rule in RULES.items()
    }
    assert found == {
        "magnitude": [1.0, 3.0],
        "evolution": [2.0, 0.25],
        "evolution_abs": [2.0, 0.25],
        "taylor": [-2.0, 0.25],
        "movement": [-2.0, 0.25],
        "platon": [2.0, 0.5],
        "fisher": [0.5, 18.0],
    }


def test_a_weight_that_oscillates_scores_low_unless_its_size_counts():
    averages = {"evolution": torch.zeros(2), "evolution_abs": torch.zeros(2)}
    for t in range(1, 101):
        w = torch.tensor([0.5, (-1.0) ** t])
        for name, average in averages.items():
            get_rule(name).update(average, weight=w, grad=w, alpha=alpha("mean", t))
    signed, size = (get_rule(name).score(average, w) for name, average in averages.items())
    assert signed[0] > 0.49 and signed[1] < 0.01
    torch.testing.assert_close(size, torch.tensor([0.5, 1.0]))


def test_fisher_ranks_as_with_the_bias_correction():
    weight, square = torch.randn(500), torch.rand(500)
    score = get_rule("fisher").score(None, weight, exp_avg_sq=square)
    corrected = weight.double() ** 2 * (square.double() / (1 - 0.999**7))
    assert torch.equal(score.argsort(), corrected.argsort())


def test_missing_states_and_unknown_rule():
    with pytest.raises(ValueError, match=r"'evolution'.*None"):
        get_rule("evolution").score(None, torch.ones(2))
    with pytest.raises(ValueError, match=r"'fisher' scores \('exp_avg_sq',\), got \(\)"):
        get_rule("fisher").score(None, torch.ones(2))
    with pytest.raises(ValueError, match=r"uncertainty.*got \('sensitivity',\)"):
        get_rule("platon").score(None, torch.ones(2), sensitivity=torch.ones(2))
    with pytest.raises(ValueError, match=r"'movement', 'platon', 'fisher'\), got 'obs'"):
        get_rule("obs")


def test_bf16_weights_keep_an_fp32_state():
    rule, average = get_rule("evolution"), torch.zeros(3)
    w = torch.randn(3).bfloat16()
    rule.update(average, weight=w, grad=w, alpha=0.3)
    torch.testing.assert_close(average, 0.3 * w.float())
    assert rule.score(average, w).dtype == torch.float32
