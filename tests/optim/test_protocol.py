"""What trainers expect of an optimizer: hooks, closures, learning-rate schedulers, tensor lr, zero_grad, reports."""

from __future__ import annotations

import copy

import pytest
import torch
from torch.optim import lr_scheduler
from torch.optim.optimizer import (
    register_optimizer_step_post_hook,
    register_optimizer_step_pre_hook,
)

import evoprune_kernels as ek

CONFIG = ek.PruneConfig("2:4", start=2, end=6, every=2)
CLASSES = pytest.mark.parametrize(
    ("ours", "theirs"),
    [
        pytest.param(ek.optim.AdamW, torch.optim.AdamW, id="AdamW"),
        pytest.param(ek.optim.SGD, torch.optim.SGD, id="SGD"),
    ],
)
PRUNE = pytest.mark.parametrize("prune", [None, CONFIG])


def one_parameter(optimizer_class, **kwargs):
    torch.manual_seed(0)
    w = torch.nn.Parameter(torch.randn(4, 8))
    return w, optimizer_class([w], **kwargs)


@CLASSES
@PRUNE
def test_hooks_fire_once_and_in_order(ours, theirs, prune):
    w, optimizer = one_parameter(ours, lr=0.1, prune=prune)
    w.grad = torch.randn(4, 8)
    calls = []
    handles = [
        register_optimizer_step_pre_hook(lambda *a: calls.append("global pre")),
        register_optimizer_step_post_hook(lambda *a: calls.append("global post")),
        optimizer.register_step_pre_hook(lambda *a: calls.append("pre")),
        optimizer.register_step_post_hook(lambda *a: calls.append("post")),
    ]
    try:
        optimizer.step()
    finally:
        for handle in handles:
            handle.remove()
    optimizer.step()
    assert calls == ["global pre", "pre", "post", "global post"]


@CLASSES
@PRUNE
def test_closures(ours, theirs, prune):
    w, optimizer = one_parameter(ours, lr=0.1, prune=prune)
    calls = []

    def closure():
        assert torch.is_grad_enabled()
        optimizer.zero_grad()
        loss = w.square().sum()
        loss.backward()
        calls.append(loss.detach())
        return loss

    with torch.no_grad():
        returned = optimizer.step(closure)
        assert not torch.is_grad_enabled()
    assert len(calls) == 1 and torch.equal(returned.detach(), calls[0])
    assert optimizer.step() is None


SCHEDULERS = [
    lambda o: lr_scheduler.StepLR(o, step_size=2, gamma=0.5),
    lambda o: lr_scheduler.LambdaLR(o, lambda t: t / 4),  # begins with lr 0
    lambda o: lr_scheduler.CosineAnnealingLR(o, T_max=6),
    lambda o: lr_scheduler.OneCycleLR(o, max_lr=0.2, total_steps=20),
    lambda o: lr_scheduler.SequentialLR(
        o, [lr_scheduler.LinearLR(o, 0.1, total_iters=3), lr_scheduler.ExponentialLR(o, 0.9)], [3]
    ),
    lambda o: lr_scheduler.ReduceLROnPlateau(o, patience=1),
]


@CLASSES
@pytest.mark.parametrize("make", SCHEDULERS)
@pytest.mark.parametrize("tensor_lr", [False, True])
def test_learning_rate_schedulers(ours, theirs, make, tensor_lr):
    def train(optimizer_class, **kwargs):
        lr = torch.tensor(0.1) if tensor_lr else 0.1
        extra = {"momentum": 0.9} if issubclass(optimizer_class, torch.optim.SGD) else {}
        w, optimizer = one_parameter(optimizer_class, lr=lr, **extra, **kwargs)
        scheduler = make(optimizer)
        for i in range(10):
            w.grad = torch.full((4, 8), 0.5 + i)
            optimizer.step()
            if isinstance(scheduler, lr_scheduler.ReduceLROnPlateau):
                scheduler.step(1.0)
            else:
                scheduler.step()
        return w.detach(), optimizer

    expected, torchs = train(theirs)
    weight, optimizer = train(ours)
    assert torch.equal(weight, expected)
    assert float(optimizer.param_groups[0]["lr"]) == float(torchs.param_groups[0]["lr"])
    dense, _ = train(ours, prune=ek.PruneConfig("2:4", start=1000))
    torch.testing.assert_close(dense, expected, atol=1e-5, rtol=1e-5)
    pruned, optimizer = train(ours, prune=CONFIG)
    assert int((pruned == 0).sum()) == 16


def test_a_scheduler_that_begins_at_zero_delays_pruning():
    w, optimizer = one_parameter(ek.optim.AdamW, lr=0.1, prune=CONFIG)
    scheduler = lr_scheduler.LambdaLR(optimizer, lambda t: max(0, t - 2))
    for _ in range(5):
        w.grad = torch.randn(4, 8)
        optimizer.step()
        scheduler.step()
    assert optimizer.param_groups[0]["prune_step"] == 2  # t = 0, 1, 2 had lr 0
    assert int(optimizer.state[w]["step"]) == 5


@CLASSES
@PRUNE
@pytest.mark.parametrize("lr", [torch.tensor(0.05), torch.tensor([0.05]), torch.tensor([[0.05]])])
def test_tensor_lr(ours, theirs, prune, lr):
    w, optimizer = one_parameter(ours, lr=lr.clone(), prune=prune, foreach=False)
    expected, number = one_parameter(ours, lr=0.05, prune=prune, foreach=False)
    for i in range(8):
        w.grad = torch.full((4, 8), 1.0 + i)
        expected.grad = w.grad.clone()
        optimizer.step()
        number.step()
        if i == 3:
            optimizer.param_groups[0]["lr"].fill_(0.01)
            number.param_groups[0]["lr"] = 0.01
    torch.testing.assert_close(w, expected, atol=1e-6, rtol=1e-5)


def test_tensor_betas():
    betas = (torch.tensor(0.8), torch.tensor([0.9]))
    for prune in (None, CONFIG):
        w, optimizer = one_parameter(ek.optim.AdamW, betas=betas, prune=prune, foreach=False)
        expected, number = one_parameter(
            ek.optim.AdamW, betas=(0.8, 0.9), prune=prune, foreach=False
        )
        for i in range(8):
            w.grad = torch.full((4, 8), 1.0 + i)
            expected.grad = w.grad.clone()
            optimizer.step()
            number.step()
        torch.testing.assert_close(w, expected, atol=1e-6, rtol=1e-5)


@CLASSES
@PRUNE
def test_zero_grad(ours, theirs, prune):
    w, optimizer = one_parameter(ours, lr=0.1, prune=prune)
    w.grad = torch.ones_like(w)
    optimizer.zero_grad(set_to_none=False)
    assert not w.grad.any()
    optimizer.zero_grad()
    assert w.grad is None


@CLASSES
def test_subclasses_and_public_attributes_survive(ours, theirs):
    class Mine(ours):
        def step(self, closure=None):
            return super().step(closure)

    w, optimizer = one_parameter(Mine, lr=0.1, prune=CONFIG)
    for _ in range(8):
        w.grad = torch.randn(4, 8)
        optimizer.step()
    twin = copy.deepcopy(optimizer)
    public = [n for n in dir(optimizer) if not n.startswith("_")]
    assert set(public) <= set(dir(twin))
    assert int((w == 0).sum()) == 16
    assert isinstance(optimizer, theirs)


@CLASSES
def test_a_group_added_while_training_has_its_own_schedule(ours, theirs):
    w, optimizer = one_parameter(ours, lr=0.1, prune=CONFIG)
    late = torch.nn.Parameter(torch.randn(4, 8))
    plain = torch.nn.Parameter(torch.randn(4, 8))
    for i in range(12):
        if i == 4:
            optimizer.add_param_group({"params": [late]})
            optimizer.add_param_group({"params": [plain], "prune": None})
        for p in (w, late, plain):
            p.grad = torch.randn(4, 8)
        optimizer.step()
        if i == 5:
            assert int((w == 0).sum()) == 16 and int((late == 0).sum()) == 0
    assert [g["prune_step"] for g in optimizer.param_groups] == [12, 8, 0]
    assert [int((p == 0).sum()) for p in (w, late, plain)] == [16, 16, 0]
    report = optimizer.sparsity_report()
    assert report == {
        "sparsity": 0.5,
        "sparsity/group0.param0": 0.5,
        "sparsity/group1.param0": 0.5,
        "target/group0": 0.5,
        "target/group1": 0.5,
    }


LATE = ek.PruneConfig("2:4", importance="magnitude", start=2, every=50)


def test_refresh_by_hand_follows_the_schedule():
    w, optimizer = one_parameter(ek.optim.SGD, lr=0.1, prune=LATE)
    w.grad = torch.zeros_like(w)
    optimizer.step()
    optimizer.refresh_masks_()
    assert not optimizer.masks() and (w != 0).all(), "nothing is pruned before start"
    optimizer.step()
    with torch.no_grad():
        w.copy_(torch.arange(32.0).view(4, 8))
    optimizer.refresh_masks_()
    assert torch.equal(w != 0, (torch.arange(32).view(4, 8) % 4) >= 2)
    ek.optim.SGD([w], lr=0.1).refresh_masks_()


def test_capturable_is_checked_as_in_torch_and_ignored_by_pruned_groups():
    w, optimizer = one_parameter(ek.optim.AdamW, capturable=True, foreach=False)
    w.grad = torch.ones_like(w)
    with pytest.raises(AssertionError, match="capturable=True"):
        optimizer.step()
    w, optimizer = one_parameter(ek.optim.AdamW, capturable=True, prune=CONFIG)
    for _ in range(6):
        w.grad = torch.ones_like(w)
        optimizer.step()
    assert int((w == 0).sum()) == 16
