"""``gate_norm`` and its backward in Triton: values, statistics, gradients, closed channels, memory requests."""

from __future__ import annotations

import pytest
import torch

from evoprune_kernels.ops import OPS
from evoprune_kernels.ops.gate_norm.cases import CASES
from evoprune_kernels.ops.gate_norm.reference import (
    gate_norm_backward_reference,
    gate_norm_reference,
)
from tests.tolerance import assert_accurate
from tests.triton.registered import on_cpu

TAKEN = [case for case in CASES if case.args()[0].dtype != torch.float64]
#: large, so that the gradient of a static gate is more than rounding
EPS = 0.5


def double(args):
    return [a.double() if isinstance(a, torch.Tensor) else a for a in args]


def compare(found, truth, plain):
    """Where the truth is finite: error(kernel) <= 2 error(torch) + floor; elsewhere not finite either."""
    for mine, true, other in zip(found, truth, plain, strict=True):
        finite = true.isfinite()
        assert torch.equal(mine.isfinite(), finite) and mine.dtype == other.dtype
        mine, true, other = (t.masked_fill(~finite, 0.0) for t in (mine, true, other))
        assert_accurate(mine, true, other)


def check_forward(run, args):
    y, *rest = run("gate_norm", *args)
    compare([y, *rest], gate_norm_reference(*double(args)), plain := gate_norm_reference(*args))
    assert y.stride() == plain[0].stride()
    return y, *rest


def check_backward(run, args):
    found, plain = run("gate_norm_backward", *args), gate_norm_backward_reference(*args)
    compare(found, gate_norm_backward_reference(*double(args)), plain)
    assert found[0].stride() == plain[0].stride() and found[1].shape == plain[1].shape
    return found


def given_statistics(x):
    generator = torch.Generator().manual_seed(5)
    mean = torch.randn(x.shape[1], generator=generator)
    return mean, torch.rand(x.shape[1], generator=generator) + 0.5


def gradient_of(args, statistics, training):
    """A gradient that is 0 where y is about 0: there the sides of the ReLU may differ."""
    y = gate_norm_reference(*double([*args, *statistics, EPS, False]))[0]
    return torch.randn(y.shape).masked_fill(y.abs() < 1e-4, 0.0).to(args[0].dtype)


@pytest.mark.parametrize("training, relu", [(True, False), (True, True), (False, True)])
@pytest.mark.parametrize("case", TAKEN, ids=lambda case: case.name)
def test_forward_and_backward(run, case, training, relu):
    args = case.args()
    given = (None, None) if training else given_statistics(args[0])
    _, *statistics = check_forward(run, (*args, *given, EPS, relu))
    if "nan" not in case.name:  # which has a test of its own
        grad = gradient_of(args, statistics, training)
        check_backward(run, (grad, *args, *statistics, training, EPS, relu, True))


@pytest.mark.parametrize("last", [False, True])
@pytest.mark.parametrize("per_sample", [False, True])
def test_several_parts_of_a_sum(run, last, per_sample):
    """Parts of a plane and of the rows; with a gradient of the gates and without; two runs give the same bits."""
    order = torch.channels_last if last else torch.contiguous_format
    x, grad = (torch.randn(2, 3, 67, 67).contiguous(memory_format=order) for _ in "xg")
    gates = torch.tensor([[0.5, 0.0, -2.0], [0.0, 1.0, 3.0]])
    args = x, gates if per_sample else gates[0], torch.randn(3), None
    forward = (*args, None, None, EPS, True)
    y, mean, var = check_forward(run, forward)
    backward = grad, *args, mean, var, True, EPS, True
    found = (y, mean, var, *run("gate_norm_backward", *backward, True))
    again = (*run("gate_norm", *forward), *run("gate_norm_backward", *backward, True))
    assert all(torch.equal(a, b) for a, b in zip(found, again, strict=True))
    alone = run("gate_norm_backward", *backward, False)
    assert alone[1].shape == (0,) and all(torch.equal(alone[i], found[3 + i]) for i in (0, 2, 3))


@pytest.mark.parametrize("last", [False, True])
@pytest.mark.parametrize("training", [False, True])
def test_a_closed_channel_is_a_constant(run, last, training):
    """Whatever x holds: the same bits as with other values, one value of y, and +0.0 in dx."""
    x = torch.randn(3, 20, 5, 5)
    clean, gates = x.clone(), (torch.arange(20) % 3 != 0).float()
    x[:, ::3] = torch.tensor([float("nan"), float("inf"), -float("inf")]).view(3, 1, 1, 1)
    if last:
        x, clean = (t.contiguous(memory_format=torch.channels_last) for t in (x, clean))
    given = (None, None) if training else given_statistics(x)
    rest = gates, torch.randn(20), torch.randn(20)
    y, mean, var = run("gate_norm", x, *rest, *given, EPS, True)
    same = run("gate_norm", clean, *rest, *given, EPS, True)
    assert all(torch.equal(a, b) for a, b in zip((y, mean, var), same, strict=True))
    assert all(plane.unique().numel() == 1 for plane in y[:, ::3].transpose(0, 1))
    after = *rest, mean, var, training, EPS, True, False
    grad = torch.randn(3, 20, 5, 5)
    found, expected = (run("gate_norm_backward", grad, t, *after) for t in (x, clean))
    assert all(torch.equal(a, b) for a, b in zip(found, expected, strict=True))
    assert found[0][:, ::3].eq(0).all() and not found[0][:, ::3].signbit().any()


@pytest.mark.parametrize("last", [False, True])
def test_a_large_mean_leaves_the_variance(run, last):
    """Values near 10000 with a spread of 1: a sum of squares in float32 would lose the variance."""
    x = torch.randn(4, 5, 40, 41) + 10000
    x = x.contiguous(memory_format=torch.channels_last) if last else x
    gates = torch.tensor([1.0, 0.5, -2.0, 1.0, 1.0])
    _, mean, var = run("gate_norm", x, gates, None, None, None, None, EPS, False)
    true = x.double().var((0, 2, 3), correction=0) * gates.double() ** 2
    torch.testing.assert_close(var.double(), true, rtol=1e-4, atol=0)
    true = x.double().mean((0, 2, 3)) * gates
    torch.testing.assert_close(mean.double(), true, rtol=1e-6, atol=0)


@pytest.mark.parametrize("shape", [(0, 3, 2, 2), (2, 0, 2, 2), (2, 3, 0, 2)])
def test_empty(run, shape):
    x = torch.zeros(shape)
    rest = torch.ones(shape[1]), None, None, *given_statistics(x)
    assert run("gate_norm", x, *rest, EPS, True)[0].shape == shape
    dx, dgates, dweight, dbias = run("gate_norm_backward", x, x, *rest, False, EPS, True, True)
    assert dx.shape == shape
    assert all(t.tolist() == [0.0] * shape[1] for t in (dgates, dweight, dbias))


def test_views_and_a_contiguous_gradient_of_a_channels_last_activation(run):
    x = torch.randn(2, 3, 5, 4).transpose(2, 3)
    rest = torch.randn(6)[::2], torch.randn(6)[1::2], None
    _, mean, var = check_forward(run, (x, *rest, None, None, EPS, False))
    last = x.contiguous(memory_format=torch.channels_last)
    check_backward(run, (torch.randn(2, 3, 4, 5), last, *rest, mean, var, True, EPS, False, True))


def test_autograd_goes_through_the_kernels(simulated):
    leaves = [
        torch.randn(2, 3, 4, 4),
        torch.tensor([0.5, 0.0, 2.0]),
        torch.randn(3),
        torch.randn(3),
    ]
    leaves, grad = [t.requires_grad_() for t in leaves], torch.randn(2, 3, 4, 4)
    rest = None, None, EPS, True
    expected = torch.autograd.grad(OPS["gate_norm"](*leaves, *rest)[0], leaves, grad)
    with on_cpu(
        simulated, "evoprune_triton::gate_norm", "evoprune::gate_norm_backward"
    ) as launched:
        y, _, _ = OPS["gate_norm"].triton[0](*leaves, *rest)
        found = torch.autograd.grad(y, leaves, grad)
    for mine, other in zip(found, expected, strict=True):
        torch.testing.assert_close(mine, other, rtol=1e-4, atol=1e-5)
    assert launched == [
        "gate_norm_statistics_kernel", "gate_norm_combine_kernel", "gate_norm_kernel",
        "gate_norm_sums_kernel", "channel_gate_sums_kernel", "gate_norm_grad_kernel", "channel_gate_sums_kernel",
    ]  # fmt: skip


# ---- memory ----
@pytest.mark.parametrize("last", [False, True])
def test_two_passes_over_memory_each_way(simulated, last):
    order = torch.channels_last if last else torch.contiguous_format
    x = torch.randn(4, 64, 8, 8).half().contiguous(memory_format=order)
    rest = torch.rand(64) + 0.5, torch.randn(64), torch.randn(64)
    _, mean, var = simulated.call("gate_norm", x, *rest, None, None, EPS, True)
    statistics, _, norm = (stats for _, stats in simulated.launches)
    assert statistics["global.load.footprint"] == x.nbytes + 256
    assert norm["global.load.footprint"] == x.nbytes + 5 * 256
    assert norm["global.store.sectors"] * 32 == norm["global.store.bytes"] == x.nbytes
    simulated.call("gate_norm_backward", x, x.clone(), *rest, mean, var, True, EPS, True, False)
    sums, _, grad = (stats for _, stats in simulated.launches)
    assert sums["global.load.footprint"] == 2 * x.nbytes + 5 * 256
    assert grad["global.load.footprint"] == 2 * x.nbytes + 7 * 256
    assert grad["global.store.sectors"] * 32 == grad["global.store.bytes"] == x.nbytes


def test_closed_channels_are_not_read(simulated):
    x = torch.full((2, 8, 16, 16), float("nan"))
    x[:, 1] = torch.randn(2, 16, 16)
    gates = torch.tensor([0.0, 1.0, 0.0, -0.0, 0.0, 0.0, 0.0, 0.0])
    y, _, _ = simulated.call("gate_norm", x, gates, None, None, None, None, EPS, False)
    assert y.isfinite().all()
    statistics, _, norm = (stats for _, stats in simulated.launches)
    assert statistics["global.load.footprint"] == 2 * 256 * 4 + 32
    assert norm["global.load.footprint"] == 2 * 256 * 4 + 3 * 32
