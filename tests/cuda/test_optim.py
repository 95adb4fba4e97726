"""The optimizers on the simulated GPU: the kernel reads a scaler's ``found_inf``, and steps count as on the CPU."""

from __future__ import annotations

import pytest
import torch

import evoprune_kernels as ek
from evoprune_kernels import ops
from evoprune_kernels.optim import _counting

SKIPPED = (3, 4, 7)  # of the calls of step(); 7 would choose masks
CLASSES = [
    pytest.param(ek.optim.AdamW, "adamw_step_", {}, {"amsgrad": False}, id="adamw"),
    pytest.param(ek.optim.SGD, "sgd_step_", {"momentum": 0.9}, {"nesterov": False}, id="sgd"),
]


@pytest.fixture(autouse=True)
def small_memory(gpu, monkeypatch):
    """Filling the simulated memory takes longer than these problems."""
    monkeypatch.setattr(gpu, "memory_bytes", 1 << 22, raising=False)


def train(cls, kwargs, importance):
    """Ten steps with a scaler's flags; everything that they leave behind."""
    torch.manual_seed(0)
    params = [torch.nn.Parameter(torch.randn(8, 16)) for _ in range(2)]
    config = ek.PruneConfig("2:4", importance=importance, start=3, end=6, every=3)
    optimizer = cls(params, lr=0.05, prune=config, fused=True, **kwargs)
    for call in range(10):
        for p in params:
            p.grad = torch.randn(8, 16) if call not in SKIPPED else torch.full((8, 16), torch.inf)
        optimizer.found_inf = torch.tensor(float(call in SKIPPED))
        optimizer.grad_scale = torch.tensor(2.0)
        optimizer.step()
    left = [p.detach() for p in params]
    for p in params:
        left += [optimizer.state[p][key] for key in sorted(optimizer.state[p])]
    return left, optimizer.state_dict()["param_groups"]


@pytest.mark.parametrize(("cls", "op", "kwargs", "needed"), CLASSES)
@pytest.mark.parametrize("importance", ["evolution", "magnitude"])
def test_skipped_steps_are_left_to_the_kernel(
    gpu, monkeypatch, cls, op, kwargs, needed, importance
):
    expected, expected_groups = train(cls, kwargs, importance)
    given = []

    def step(*lists, **options):
        given.append(options.get("found_inf"))
        defaults = {**needed, "maximize": False, "rule": "none", "alpha": 0.0}
        gpu.call(op, *lists, **{**defaults, **options})

    monkeypatch.setattr(ops, op, step)
    for module in (_counting, ek.optim._pruning):
        monkeypatch.setattr(module, "on_host", lambda tensor: False)
    found, groups = train(cls, kwargs, importance)
    for a, b in zip(found, expected, strict=True):
        assert torch.equal(a, b)
    assert groups == expected_groups
    # the host has read it in call 0, a first step, and where masks are chosen: calls 2, 7 and 8
    assert sum(flag is not None for flag in given) == 6
    assert any(flag is not None and flag.item() != 0 for flag in given)
