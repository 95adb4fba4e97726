"""Where torch's fused optimizers are wrong: each hole is shown on torch (or noted as fixed), and closed in ours.

``torch_is_wrong`` never fails a test: a torch that fixed a hole is welcome. What ours computes is always asserted.
"""

from __future__ import annotations

import copy

import pytest
import torch

import evoprune_kernels as ek
from evoprune_kernels.optim._layout import is_dense, same_layout

PAIRS = [
    pytest.param(ek.optim.AdamW, torch.optim.AdamW, {"lr": 0.1}, id="adamw"),
    pytest.param(ek.optim.AdamW, torch.optim.AdamW, {"lr": 0.1, "amsgrad": True}, id="amsgrad"),
    pytest.param(ek.optim.SGD, torch.optim.SGD, {"lr": 0.1, "momentum": 0.9}, id="momentum"),
    pytest.param(ek.optim.SGD, torch.optim.SGD, {"lr": 0.1}, id="sgd"),
]


@pytest.fixture
def torch_is_wrong(record_property):
    """Notes in the test report (``pytest --junit-xml``) whether the hole is open in this torch."""
    return lambda wrong: record_property("torch_is_wrong", bool(wrong))


def run(optimizer_class, make, steps=3, **kwargs):
    """Steps one parameter with fixed gradients; the parameter and whatever storage ``make`` returned."""
    param, storage, gradient = make()
    optimizer = optimizer_class([param], **kwargs)
    for i in range(steps):
        param.grad = gradient(i)
        optimizer.step()
    return param, storage


def transposed_gradient():
    torch.manual_seed(1)
    values = torch.randn(8, 5)
    param = torch.nn.Parameter(torch.randn(5, 8))
    return param, None, lambda i: (values * (i + 1)).t()


def column_of_a_buffer():
    torch.manual_seed(1)
    buffer = torch.full((40, 2), 7.0)
    param = buffer[:, 0].detach().requires_grad_()
    values = torch.randn(40)
    return param, buffer, lambda i: values * (i + 1)


@pytest.mark.parametrize(("ours", "theirs", "kwargs"), PAIRS)
@pytest.mark.parametrize("make", [transposed_gradient, column_of_a_buffer])
def test_strides(ours, theirs, kwargs, make, torch_is_wrong):
    truth, _ = run(theirs, make, fused=False, foreach=False, **kwargs)
    try:
        broken, _ = run(theirs, make, fused=True, **kwargs)
        torch_is_wrong(not torch.allclose(broken, truth, atol=1e-4))
    except RuntimeError:
        torch_is_wrong(True)
    param, buffer = run(ours, make, fused=True, **kwargs)
    torch.testing.assert_close(param, truth, atol=1e-5, rtol=1e-5)
    if buffer is not None:
        assert (buffer[:, 1] == 7.0).all(), "memory beside the parameter was changed"


@pytest.mark.parametrize(("ours", "theirs", "kwargs"), PAIRS)
def test_a_state_of_other_strides(ours, theirs, kwargs):
    """A checkpoint holds contiguous moments, the model went to channels_last since."""
    torch.manual_seed(1)
    source = torch.nn.Parameter(torch.randn(4, 3, 5, 5))
    grads = [torch.randn(4, 3, 5, 5) for _ in range(3)]
    first = theirs([source], fused=False, foreach=False, **kwargs)
    source.grad = grads[0]
    first.step()
    param = torch.nn.Parameter(
        source.detach().clone().contiguous(memory_format=torch.channels_last)
    )
    resumed = ours([param], fused=True, **kwargs)
    saved = copy.deepcopy(first.state_dict()["state"])
    resumed.load_state_dict({**resumed.state_dict(), "state": saved})
    for grad in grads[1:]:
        source.grad, param.grad = grad, grad.clone()
        first.step()
        resumed.step()
    torch.testing.assert_close(param, source, atol=1e-5, rtol=1e-5)


def test_the_unscaled_gradient_is_written_back_through_strides():
    param, _, gradient = transposed_gradient()
    optimizer = ek.optim.AdamW([param], fused=True)
    param.grad = gradient(0)
    expected = param.grad / 4
    optimizer.grad_scale = torch.tensor(4.0)
    optimizer.found_inf = torch.tensor(0.0)
    optimizer.step()
    assert torch.equal(param.grad, expected)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("numel", [1, 7, 15, 16, 17, 31, 32, 33, 64, 67, 1023])
@pytest.mark.parametrize("momentum", [0.0, 0.9])
def test_sixteen_bit_sgd_steps_every_element(dtype, numel, momentum, torch_is_wrong):
    def steps(optimizer_class):
        param = torch.nn.Parameter(torch.ones(numel, dtype=dtype))
        optimizer = optimizer_class([param], lr=0.25, momentum=momentum, fused=True)
        for _ in range(2):
            param.grad = torch.ones(numel, dtype=dtype)
            optimizer.step()
        return param.detach().float()

    expected = 1 - 0.25 - 0.25 * (1 + momentum)
    torch_is_wrong(not torch.allclose(steps(torch.optim.SGD), torch.tensor(expected), atol=0.01))
    torch.testing.assert_close(
        steps(ek.optim.SGD), torch.full((numel,), expected), atol=4e-3, rtol=0
    )


@pytest.mark.parametrize("value", [1.0, 2.0, 8.0])
@pytest.mark.parametrize(("ours", "theirs", "kwargs"), PAIRS)
def test_every_found_inf_but_zero_skips(ours, theirs, kwargs, value, torch_is_wrong):
    def changed(optimizer_class):
        torch.manual_seed(1)
        param = torch.nn.Parameter(torch.randn(33))
        optimizer = optimizer_class([param], fused=True, **kwargs)
        param.grad = torch.randn(33)
        optimizer.step()
        before = [param.detach().clone(), *map(torch.clone, optimizer.state[param].values())]
        param.grad = torch.randn(33)
        optimizer.found_inf = torch.tensor(value)
        optimizer.grad_scale = torch.tensor(2.0)
        optimizer.step()
        after = [param.detach(), *optimizer.state[param].values()]
        return not all(torch.equal(a, b) for a, b in zip(before, after, strict=True))

    torch_is_wrong(value == 1.0 or changed(theirs))
    assert not changed(ours)


def test_overflow_in_the_first_step_with_momentum(torch_is_wrong):
    def steps(optimizer_class, **flags):
        torch.manual_seed(1)
        param = torch.nn.Parameter(torch.ones(40))
        optimizer = optimizer_class([param], lr=0.1, momentum=0.9, dampening=0.5, **flags)
        if flags["fused"]:
            param.grad = torch.full((40,), float("inf"))
            optimizer.grad_scale, optimizer.found_inf = torch.tensor(1.0), torch.tensor(1.0)
            optimizer.step()
            del optimizer.grad_scale, optimizer.found_inf
        for _ in range(2):
            param.grad = torch.ones(40)
            optimizer.step()
        return param.detach()

    truth = steps(torch.optim.SGD, fused=False)
    torch_is_wrong(not torch.allclose(steps(torch.optim.SGD, fused=True), truth))
    assert torch.equal(steps(ek.optim.SGD, fused=True), steps(ek.optim.SGD, fused=False))
    torch.testing.assert_close(steps(ek.optim.SGD, fused=True), truth)


def test_a_parameter_that_gets_its_first_gradient_later(torch_is_wrong):
    def steps(optimizer_class, fused):
        torch.manual_seed(1)
        early, late = torch.nn.Parameter(torch.ones(9)), torch.nn.Parameter(torch.ones(9))
        optimizer = optimizer_class([early, late], lr=0.1, momentum=0.9, dampening=0.5, fused=fused)
        for i in range(4):
            early.grad = torch.ones(9)
            late.grad = torch.ones(9) if i >= 2 else None
            optimizer.step()
        return torch.cat([early.detach(), late.detach()])

    truth = steps(torch.optim.SGD, False)
    try:
        torch_is_wrong(not torch.allclose(steps(torch.optim.SGD, True), truth))
    except (TypeError, RuntimeError):
        torch_is_wrong(True)
    torch.testing.assert_close(steps(ek.optim.SGD, True), truth)


def test_layouts_are_told_apart():
    x = torch.zeros(4, 3, 5, 5)
    assert is_dense(x.contiguous(memory_format=torch.channels_last))
    assert (
        is_dense(x.permute(3, 0, 2, 1))
        and is_dense(torch.zeros(0, 3))
        and is_dense(torch.tensor(1.0))
    )
    assert not is_dense(x[:, 0]) and not is_dense(torch.zeros(4).expand(3, 4))
    assert same_layout(torch.zeros(3, 1).t(), torch.zeros(1, 3)), (
        "strides of size-1 dimensions do not count"
    )
    assert not same_layout(x, x.contiguous(memory_format=torch.channels_last))
    assert not same_layout(torch.zeros(3), torch.zeros(4))
