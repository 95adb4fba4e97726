"""The optimizers on the simulated GPU: the kernel reads ``found_inf`` and a tensor lr, steps count as on the CPU."""

from __future__ import annotations

import pytest
import torch

import evoprune_kernels as ek
from evoprune_kernels import ops
from evoprune_kernels.optim import _counting

SKIPPED = (3, 4, 7)  # of the calls of step(); 7 would choose masks
STILL = (1, 4, 5, 8)  # calls with a learning rate of 0; 8 would choose masks
CLASSES = [
    pytest.param(ek.optim.AdamW, "adamw_step_", {}, {"amsgrad": False}, id="adamw"),
    pytest.param(ek.optim.SGD, "sgd_step_", {"momentum": 0.9}, {"nesterov": False}, id="sgd"),
]


@pytest.fixture(autouse=True)
def small_memory(gpu, monkeypatch):
    """Filling the simulated memory takes longer than these problems."""
    monkeypatch.setattr(gpu, "memory_bytes", 1 << 22, raising=False)


def train(cls, kwargs, importance, lr=0.05, still=()):
    """Ten steps with a scaler's flags; everything that they leave behind."""
    torch.manual_seed(0)
    params = [torch.nn.Parameter(torch.randn(8, 16)) for _ in range(2)]
    config = ek.PruneConfig("2:4", importance=importance, start=3, end=6, every=3)
    optimizer = cls(params, lr=lr, prune=config, fused=True, **kwargs)
    for call in range(10):
        rate = 0.0 if call in still else 0.05
        for group in optimizer.param_groups:
            group["lr"] = lr.fill_(rate) if isinstance(lr, torch.Tensor) else rate
        for p in params:
            p.grad = torch.randn(8, 16) if call not in SKIPPED else torch.full((8, 16), torch.inf)
        optimizer.found_inf = torch.tensor(float(call in SKIPPED))
        optimizer.grad_scale = torch.tensor(2.0)
        optimizer.step()
    left = [p.detach() for p in params]
    for p in params:
        left += [optimizer.state[p][key] for key in sorted(optimizer.state[p])]
    return left, optimizer.state_dict()["param_groups"]


def run_on_the_device(gpu, monkeypatch, op, needed):
    """Steps go to the simulated kernels, and no tensor is on the host; the options of every call."""
    given = []

    def step(*lists, **options):
        given.append(options)
        defaults = {**needed, "maximize": False, "rule": "none", "alpha": 0.0}
        overload = ".tensor_lr" if isinstance(options["lr"], torch.Tensor) else ""
        gpu.call(op + overload, *lists, **{**defaults, **options})

    monkeypatch.setattr(ops, op, step)
    for module in (_counting, ek.optim._pruning):
        monkeypatch.setattr(module, "on_host", lambda tensor: False)
    return given


@pytest.mark.parametrize(("cls", "op", "kwargs", "needed"), CLASSES)
@pytest.mark.parametrize("importance", ["evolution", "magnitude"])
def test_skipped_steps_are_left_to_the_kernel(
    gpu, monkeypatch, cls, op, kwargs, needed, importance
):
    expected, expected_groups = train(cls, kwargs, importance)
    given = run_on_the_device(gpu, monkeypatch, op, needed)
    found, groups = train(cls, kwargs, importance)
    for a, b in zip(found, expected, strict=True):
        assert torch.equal(a, b)
    assert groups == expected_groups
    # the host has read it in call 0, a first step, and where masks are chosen: calls 2, 7 and 8
    flags = [options["found_inf"].item() for options in given if "found_inf" in options]
    assert len(flags) == 6
    assert any(flags)


@pytest.mark.parametrize(("cls", "op", "kwargs", "needed"), CLASSES)
@pytest.mark.parametrize("importance", ["evolution", "taylor"])
def test_whether_a_tensor_lr_is_zero_is_left_to_the_kernel(
    gpu, monkeypatch, cls, op, kwargs, needed, importance
):
    expected, (expected_group,) = train(cls, kwargs, importance, still=STILL)
    given = run_on_the_device(gpu, monkeypatch, op, needed)
    found, (group,) = train(cls, kwargs, importance, lr=torch.tensor(0.05), still=STILL)
    for a, b in zip(found, expected, strict=True):
        assert torch.equal(a, b)
    assert {**group, "lr": 0} == {**expected_group, "lr": 0}
    assert any("rule" in options for options in given)
