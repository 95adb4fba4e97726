"""torch.compile(optimizer.step): right results, and no new compilation for every new alpha, step or learning rate."""

from __future__ import annotations

import pytest
import torch
from torch._dynamo.testing import CompileCounter

import evoprune_kernels as ek

CONFIG = ek.PruneConfig("2:4", start=3, end=9, every=2)


@pytest.fixture(autouse=True)
def _fresh():
    torch._dynamo.reset()
    yield
    torch._dynamo.reset()


def train(optimizer_class, compiled, steps=14, tensor_lr=True, **kwargs):
    torch.manual_seed(0)
    weights = [torch.nn.Parameter(torch.randn(8, 16)), torch.nn.Parameter(torch.randn(16))]
    lr = torch.tensor(0.1) if tensor_lr else 0.1
    optimizer = optimizer_class(weights, lr=lr, foreach=False, **kwargs)
    counter = CompileCounter()
    step = torch.compile(optimizer.step, backend=counter) if compiled else optimizer.step
    for i in range(steps):
        for w in weights:
            w.grad = torch.full_like(w, 0.1 + i)
        step()
        if tensor_lr:
            optimizer.param_groups[0]["lr"].mul_(0.9)
    return weights, optimizer, counter.frame_count


@pytest.mark.parametrize(
    ("optimizer_class", "kwargs"),
    [(ek.optim.AdamW, {}), (ek.optim.SGD, {"momentum": 0.9}), (ek.optim.AdamW, {"fused": True})],
)
@pytest.mark.parametrize("prune", [None, CONFIG])
def test_compiled_step(optimizer_class, kwargs, prune):
    expected, plain, _ = train(optimizer_class, False, prune=prune, **kwargs)
    weights, optimizer, frames = train(optimizer_class, True, prune=prune, **kwargs)
    for a, b in zip(weights, expected, strict=True):
        torch.testing.assert_close(a, b, atol=1e-5, rtol=1e-5)
    assert optimizer.sparsity_report() == plain.sparsity_report()
    assert frames <= 4, f"{frames} compilations for 14 steps"


def test_pruned_steps_do_not_recompile_for_a_new_number_either():
    _, optimizer, frames = train(ek.optim.AdamW, True, tensor_lr=False, prune=CONFIG)
    assert optimizer.sparsity_report()["sparsity"] == 0.5
    assert frames <= 2
