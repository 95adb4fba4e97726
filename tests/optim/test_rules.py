"""Every importance rule through the optimizer: fused masks against plain torch in fp64, states, checkpoints."""

from __future__ import annotations

import copy

import pytest
import torch

import evoprune_kernels as ek
from evoprune_kernels import PruneConfig
from evoprune_kernels.importance import RULES

STEPS = 40


def gradients(t):
    generator = torch.Generator().manual_seed(100 + t)
    return torch.randn(8, 16, generator=generator)


def make(config, optimizer_class=ek.optim.AdamW):
    generator = torch.Generator().manual_seed(0)
    w = torch.nn.Parameter(torch.randn(8, 16, generator=generator))
    return w, optimizer_class([w], lr=0.01, prune=config)


def config_of(rule, **kwargs):
    return PruneConfig(
        "unstructured", 0.5, importance=rule, averaging="mean", start=STEPS, end=STEPS, window=5, **kwargs
    )  # fmt: skip


def trajectory():
    """Weights before and after each step, moments, in fp64: AdamW written out."""
    w, _ = make(config_of("magnitude"))
    w = w.detach().double()
    m = v = torch.zeros_like(w)
    rows = []
    for t in range(1, STEPS + 1):
        g = gradients(t).double()
        m, v = 0.9 * m + 0.1 * g, 0.999 * v + 0.001 * g * g
        new = w * (1 - 0.01 * 0.01) - 0.01 * (m / (1 - 0.9**t)) / (
            (v / (1 - 0.999**t)).sqrt() + 1e-8
        )
        rows.append((w, new, g, v))
        w = new
    return rows


def expected_scores(rule, point):
    rows = trajectory()
    at = [old if point == "pre" else new for old, new, _, _ in rows]
    g = [row[2] for row in rows]
    n = len(rows)
    if rule == "magnitude":
        return rows[-1][1].abs()
    if rule == "fisher":
        return rows[-1][1] ** 2 * rows[-1][3]
    if rule == "evolution":
        return (sum(at) / n).abs()
    if rule == "evolution_abs":
        return sum(x.abs() for x in at) / n
    if rule == "taylor":
        return sum((x * y).abs() for x, y in zip(at, g, strict=True)) / n
    if rule == "movement":
        return -sum(x * y for x, y in zip(at, g, strict=True)) / n
    sensitivity = uncertainty = torch.zeros_like(at[0])
    for start in range(0, n, 5):
        window = [
            (x * y).abs() for x, y in zip(at[start : start + 5], g[start : start + 5], strict=True)
        ]
        mean = sum(window) / 5
        sensitivity = 0.85 * sensitivity + 0.15 * mean
        uncertainty = 0.95 * uncertainty + 0.05 * (mean - sensitivity).abs()
    return sensitivity * uncertainty


@pytest.mark.parametrize("point", ["pre", "post", ""])
@pytest.mark.parametrize("rule", sorted(RULES))
def test_masks_after_forty_steps_are_those_of_the_closed_form(rule, point):
    w, optimizer = make(config_of(rule, point=point))
    for t in range(1, STEPS + 1):
        w.grad = gradients(t)
        optimizer.step()
    scores = expected_scores(rule, point or RULES[rule].default_point)
    ranked = scores.flatten().sort(descending=True).values
    assert ranked[63] - ranked[64] > 1e-6 * ranked[63].abs()  # the cut is no matter of rounding
    assert torch.equal(optimizer.masks()[w], scores > (ranked[63] + ranked[64]) / 2)


@pytest.mark.parametrize("rule", sorted(RULES))
def test_a_checkpoint_goes_on_to_the_same_masks(rule):
    w, optimizer = make(config_of(rule))
    for t in range(1, 18):
        w.grad = gradients(t)
        optimizer.step()
    saved = copy.deepcopy((w.detach(), optimizer.state_dict()))
    other, second = make(config_of(rule))
    with torch.no_grad():
        other.copy_(saved[0])
    second.load_state_dict(saved[1])
    for t in range(18, STEPS + 1):
        for p, o in ((w, optimizer), (other, second)):
            p.grad = gradients(t)
            o.step()
    assert torch.equal(w, other) and torch.equal(optimizer.masks()[w], second.masks()[other])


def test_the_average_may_start_late():
    w, optimizer = make(
        PruneConfig("unstructured", ramp="given", averaging="mean", average_from=31)
    )
    seen = []
    for t in range(1, STEPS + 1):
        w.grad = gradients(t)
        optimizer.step()
        seen.append(w.detach().double().clone())
    torch.testing.assert_close(optimizer.state[w]["importance"].double(), sum(seen[30:]) / 10)


def test_a_rule_that_reads_a_moment_needs_it():
    with pytest.raises(
        ValueError, match="importance='fisher' reads 'exp_avg_sq', got an optimizer that keeps"
    ):
        make(config_of("fisher"), ek.optim.SGD)


def test_stochastic_rounding_keeps_small_steps():
    """bf16 weights near 1 move by less than half a unit a step: to nearest they stay, at random they move."""
    moved = {}
    for rounding in ("nearest", "stochastic"):
        w = torch.nn.Parameter(torch.ones(64, 64, dtype=torch.bfloat16))
        config = PruneConfig(
            "unstructured", ramp="given", importance="magnitude", rounding=rounding, seed=5
        )
        optimizer = ek.optim.SGD([w], lr=1e-3, prune=config)
        for _ in range(20):
            w.grad = torch.ones_like(w)
            optimizer.step()
        moved[rounding] = 1 - w.float().mean().item()
    assert moved["nearest"] == 0.0
    assert moved["stochastic"] == pytest.approx(0.02, rel=0.1)
