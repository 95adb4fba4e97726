"""Gradient scaling: with and without unscale_, overflow in any step, any found_inf but 0; a skip changes nothing."""

from __future__ import annotations

import pytest
import torch

import evoprune_kernels as ek

CONFIG = ek.PruneConfig("2:4", start=2, end=6, every=2)
CLASSES = [
    pytest.param(ek.optim.AdamW, torch.optim.AdamW, {"lr": 0.05}, id="adamw"),
    pytest.param(ek.optim.SGD, torch.optim.SGD, {"lr": 0.05, "momentum": 0.9}, id="sgd"),
]


def snapshot(model, optimizer):
    tensors = [p.detach().clone() for p in model.parameters()]
    for p in model.parameters():
        tensors += [v.clone() for v in optimizer.state[p].values()]
    counters = [(g.get("prune_step"), g.get("prune_refreshes")) for g in optimizer.param_groups]
    return tensors, counters


def scaled_training(optimizer_class, bad_steps=(), unscale=False, fused=True, **kwargs):
    """Ten steps with a scaler; in ``bad_steps`` the loss overflows. What the skipped steps must not have changed."""
    torch.manual_seed(0)
    model = torch.nn.Sequential(torch.nn.Linear(16, 8), torch.nn.Linear(8, 4))
    optimizer = optimizer_class(model.parameters(), fused=fused, **kwargs)
    scaler = torch.amp.GradScaler(
        "cpu", init_scale=256.0, growth_interval=10_000, backoff_factor=0.5
    )
    x = torch.randn(32, 16)
    for step in range(10):
        optimizer.zero_grad()
        loss = model(x).square().mean() * (float("inf") if step in bad_steps else 1.0)
        scaler.scale(loss).backward()
        if unscale:
            scaler.unscale_(optimizer)
        before = snapshot(model, optimizer) if step in bad_steps and step > 0 else None
        scaler.step(optimizer)
        scaler.update()
        assert not hasattr(optimizer, "found_inf") and not hasattr(optimizer, "grad_scale")
        if before is not None:
            after = snapshot(model, optimizer)
            assert all(torch.equal(a, b) for a, b in zip(before[0], after[0], strict=True))
            assert before[1] == after[1]
    return model, optimizer


@pytest.mark.parametrize(("ours", "theirs", "kwargs"), CLASSES)
@pytest.mark.parametrize("unscale", [False, True])
@pytest.mark.parametrize("fused", [False, True])
@pytest.mark.parametrize("bad_steps", [(), (0,), (0, 1, 4)])
def test_without_prune_as_torch(ours, theirs, kwargs, unscale, fused, bad_steps):
    model, _ = scaled_training(ours, bad_steps, unscale, fused, **kwargs)
    # torch's fused SGD keeps garbage after an overflow in the first step: compare with the loop
    expected, _ = scaled_training(
        theirs, bad_steps, unscale, fused and 0 not in bad_steps, **kwargs
    )
    for a, b in zip(model.parameters(), expected.parameters(), strict=True):
        torch.testing.assert_close(a, b, atol=1e-6, rtol=1e-5)
        assert 0 in bad_steps or torch.equal(a, b)


@pytest.mark.parametrize(("ours", "theirs", "kwargs"), CLASSES)
@pytest.mark.parametrize("unscale", [False, True])
@pytest.mark.parametrize("fused", [False, True])
@pytest.mark.parametrize("bad_steps", [(), (0,), (2, 3)])
def test_pruned_groups_count_only_real_steps(ours, theirs, kwargs, unscale, fused, bad_steps):
    model, optimizer = scaled_training(ours, bad_steps, unscale, fused, prune=CONFIG, **kwargs)
    assert optimizer.param_groups[0]["prune_step"] == 10 - len(bad_steps)
    assert ((model[0].weight == 0).view(8, 4, 4).sum(-1) == 2).all()
    assert all(bool(p.isfinite().all()) for p in model.parameters())


@pytest.mark.parametrize(("ours", "theirs", "kwargs"), CLASSES)
@pytest.mark.parametrize("value", [1.0, 2.0, 3.0])
def test_every_found_inf_but_zero_skips_a_pruned_group(ours, theirs, kwargs, value):
    w = torch.nn.Parameter(torch.randn(8, 16))
    optimizer = ours([w], prune=CONFIG, fused=True, **kwargs)
    for _ in range(3):
        w.grad = torch.randn(8, 16)
        optimizer.step()
    model = torch.nn.ParameterList([w])
    before = snapshot(model, optimizer)
    w.grad = torch.full((8, 16), float("inf"))
    optimizer.found_inf, optimizer.grad_scale = torch.tensor(value), torch.tensor(4.0)
    optimizer.step()
    after = snapshot(model, optimizer)
    assert all(torch.equal(a, b) for a, b in zip(before[0], after[0], strict=True))
    assert before[1] == after[1]


@pytest.mark.parametrize(("ours", "theirs", "kwargs"), CLASSES)
@pytest.mark.parametrize("prune", [None, CONFIG])
def test_unscaled_gradients_are_written_back(ours, theirs, kwargs, prune):
    w, b = torch.nn.Parameter(torch.randn(8, 16)), torch.nn.Parameter(torch.randn(5))
    optimizer = ours([w, b], prune=prune, fused=True, **kwargs)
    expected = []
    for p in (w, b):
        p.grad = torch.randn(p.shape)
        expected.append(p.grad / 8)
    optimizer.found_inf, optimizer.grad_scale = torch.tensor(0.0), torch.tensor(8.0)
    optimizer.step()
    assert torch.equal(w.grad, expected[0]) and torch.equal(b.grad, expected[1])


@pytest.mark.parametrize(("ours", "theirs", "kwargs"), CLASSES)
def test_scaler_support_is_announced_as_in_torch(ours, theirs, kwargs):
    w = torch.nn.Parameter(torch.zeros(3))
    for fused in (None, False, True):
        mine, torchs = ours([w], fused=fused, **kwargs), theirs([w], fused=fused, **kwargs)
        assert getattr(mine, "_step_supports_amp_scaling", False) == getattr(
            torchs, "_step_supports_amp_scaling", False
        )


def test_mixed_groups_with_a_scaler():
    """A pruned group and a plain one under one fused flag."""
    torch.manual_seed(0)
    model = torch.nn.Sequential(torch.nn.Linear(16, 8), torch.nn.Linear(8, 4))
    optimizer = ek.optim.AdamW(ek.optim.prunable_groups(model, CONFIG), lr=0.05, fused=True)
    scaler = torch.amp.GradScaler("cpu", init_scale=64.0)
    for _ in range(8):
        optimizer.zero_grad()
        scaler.scale(model(torch.randn(32, 16)).square().mean()).backward()
        scaler.step(optimizer)
        scaler.update()
    assert optimizer.sparsity_report()["sparsity"] == 0.5
