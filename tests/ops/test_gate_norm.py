"""gate_norm: numbers by hand, torch's composition in fp64, closed channels, running statistics, gradients, opcheck."""

from __future__ import annotations

import pytest
import torch
from torch.nn import functional as F

from evoprune_kernels import ops
from evoprune_kernels.ops.gate_norm.cases import CASES
from tests.tolerance import assert_accurate

OP, BACKWARD = ops.gate_norm.OP, ops.gate_norm.BACKWARD
LEVELS = pytest.mark.usefixtures("isa")
NAMES = pytest.mark.parametrize("case", CASES, ids=lambda c: c.name)
#: large, so that y depends on the size of a static gate, whose gradient would else be rounding alone
EPS = 0.5


def composed(x, gates, weight, bias, statistics, relu, dtype):
    """Three ops of torch, in ``dtype``; NaN and infinity count as 0 where a gate is 0."""
    x, gates, weight, bias = (t if t is None else t.to(dtype) for t in (x, gates, weight, bias))
    g = gates.reshape(*gates.shape, *[1] * (x.dim() - 2))
    u = torch.where((g == 0) & ~x.isfinite(), torch.zeros_like(x), x) * g
    mean, var = statistics if statistics else (None, None)
    y = F.batch_norm(u, mean, var, weight, bias, statistics is None, 0.1, EPS)
    return y.relu() if relu else y


def given_statistics(x):
    generator = torch.Generator().manual_seed(5)
    mean = torch.randn(x.shape[1], generator=generator, dtype=torch.float64)
    return mean, torch.rand(x.shape[1], generator=generator, dtype=torch.float64) + 0.5


def statistics_of(x, training, dtype):
    return None if training else tuple(t.to(dtype) for t in given_statistics(x))


def ours(x, gates, weight, bias, training, relu, impl=None):
    wide = torch.promote_types(x.dtype, torch.float32)
    mean, var = (None, None) if training else statistics_of(x, False, wide)
    options = {"training": training, "eps": EPS, "relu": relu, "impl": impl}
    return ops.gate_norm(x, gates, weight, bias, mean, var, **options)


@pytest.mark.parametrize("impl", [None, "reference"])
def test_by_hand(impl):
    x = torch.tensor([[[1.0, 3.0], [5.0, 7.0]], [[5.0, 7.0], [9.0, 1.0]]])
    weight, bias = torch.tensor([2.0, 3.0]), torch.tensor([1.0, -0.5])
    mean, var = torch.zeros(2), torch.ones(2)
    y = ops.gate_norm(
        *(x, torch.tensor([0.5, 0.0]), weight, bias, mean, var),
        training=True, momentum=0.5, eps=0.0009765625, impl=impl,
    )  # fmt: skip
    root = (1.25 + 0.0009765625) ** 0.5  # 0.5 x is 0.5, 1.5, 2.5, 3.5
    expected = [2 * v / root + 1 for v in (-1.5, -0.5, 0.5, 1.5)]
    torch.testing.assert_close(y[:, 0].flatten(), torch.tensor(expected))
    assert y[:, 1].unique().tolist() == [-0.5]
    torch.testing.assert_close(mean, torch.tensor([1.0, 0.0]))
    torch.testing.assert_close(var, torch.tensor([0.5 + 0.5 * 1.25 * 4 / 3, 0.5]))


@LEVELS
@NAMES
@pytest.mark.parametrize("training, relu", [(True, False), (True, True), (False, True)])
def test_matches_the_composition(case, training, relu):
    args = case.args()
    x = args[0]
    y = ours(*args, training, relu)
    truth = composed(*args, statistics_of(x, training, torch.float64), relu, torch.float64)
    wide = torch.promote_types(x.dtype, torch.float32)
    same = composed(*args, statistics_of(x, training, wide), relu, wide).to(x.dtype)
    open_channels = truth.isfinite()  # a channel with NaN is NaN as a whole
    assert torch.equal(y.isfinite(), open_channels)
    zeros = torch.zeros((), dtype=torch.float64)
    assert_accurate(
        y.where(open_channels, zeros.to(y.dtype)),
        truth.where(open_channels, zeros),
        same.where(open_channels, zeros.to(same.dtype)),
    )
    assert y.stride() == x.stride() and y.dtype == x.dtype


def gradients(function, args, grad, dtype=None):
    leaves = [t if t is None else (t.to(dtype) if dtype else t).requires_grad_() for t in args]
    wanted = [t for t in leaves if t is not None]
    return torch.autograd.grad(function(*leaves), wanted, grad)


@LEVELS
@NAMES
@pytest.mark.parametrize("training, relu", [(True, False), (True, True), (False, True)])
def test_gradients_match_autograd(case, training, relu):
    if "nan" in case.name:
        pytest.skip("NaN has a test of its own")
    args = case.args()
    x = args[0]
    grad = torch.randn(x.shape).to(x.dtype)
    # where y is about 0 the two sides may differ in which side of the ReLU they are on
    truth = composed(*args, statistics_of(x, training, torch.float64), False, torch.float64)
    grad = grad.masked_fill(truth.abs() < 1e-4, 0.0)
    found = gradients(lambda *a: ours(*a, training, relu), args, grad)
    exact, same = (
        gradients(
            lambda *a, t=dtype: composed(*a, statistics_of(x, training, t), relu, t),
            case.args(),
            grad.to(dtype),
            dtype,
        )
        for dtype in (torch.float64, torch.promote_types(x.dtype, torch.float32))
    )
    for value, true, plain in zip(found, exact, same, strict=True):
        assert_accurate(value, true, plain.to(value.dtype))
    assert found[0].stride() == x.stride()


@LEVELS
@pytest.mark.parametrize("last", [False, True])
@pytest.mark.parametrize("training", [False, True])
@pytest.mark.parametrize("relu", [False, True])
def test_a_closed_channel_is_a_constant(last, training, relu):
    """Whatever x holds: y is what the norm makes of 0, dx is +0.0, and the others do not notice."""
    x = torch.randn(3, 20, 5, 5)
    clean = x.clone()
    gates = (torch.arange(20) % 3 != 0).float()
    x[:, ::3] = torch.tensor([float("nan"), float("inf"), -float("inf")]).view(3, 1, 1, 1)
    if last:
        x, clean = (t.contiguous(memory_format=torch.channels_last) for t in (x, clean))
    weight, bias, grad = torch.randn(20), torch.randn(20), torch.randn(3, 20, 5, 5)
    y = ours(x.requires_grad_(), gates, weight, bias, training, relu)
    assert torch.equal(y, ours(clean, gates, weight, bias, training, relu))
    assert all(plane.unique().numel() == 1 for plane in y[:, ::3].transpose(0, 1))
    (dx,) = torch.autograd.grad(y, x, grad)
    assert dx[:, ::3].eq(0).all() and not dx[:, ::3].signbit().any()
    (expected,) = gradients(lambda x: ours(x, gates, weight, bias, training, relu), (clean,), grad)
    assert torch.equal(dx, expected)


@LEVELS
def test_nan_in_an_open_channel_is_seen():
    args = CASES[-1].args()
    y = ours(*args, True, True)
    assert y[:, 3].isfinite().all() and y[:, [0, 2, 4]].isfinite().all()
    x = torch.randn(2, 3, 4, 4)
    x[0, 1, 2, 2] = float("nan")
    y = ops.gate_norm(x, torch.ones(3), training=True, relu=True)
    assert y[:, 1].isnan().all() and y[:, [0, 2]].isfinite().all()


@LEVELS
@pytest.mark.parametrize("last", [False, True])
def test_a_large_mean_leaves_the_variance(last):
    """Values near 10000 with a spread of 1: a sum of squares in float32 would lose the variance."""
    x = torch.randn(8, 5, 40, 41) + 10000
    x = x.contiguous(memory_format=torch.channels_last) if last else x
    _, mean, var = OP(
        x, torch.tensor([1.0, 0.5, -2.0, 1.0, 1.0]), None, None, None, None, EPS, False
    )
    factor = torch.tensor([1.0, 0.5, -2.0, 1.0, 1.0], dtype=torch.float64)
    true = x.double().var((0, 2, 3), correction=0) * factor**2
    torch.testing.assert_close(var.double(), true, rtol=1e-4, atol=0)
    torch.testing.assert_close(
        mean.double(), x.double().mean((0, 2, 3)) * factor, rtol=1e-7, atol=0
    )


@LEVELS
@pytest.mark.parametrize("last", [False, True])
@pytest.mark.parametrize("per_sample", [False, True])
def test_bits_do_not_depend_on_threads(last, per_sample):
    x, grad = torch.randn(2, 6, 37, 60, 50).unbind()
    if last:
        x, grad = (t.contiguous(memory_format=torch.channels_last) for t in (x, grad))
    gates = torch.randn(6, 37) if per_sample else torch.randn(37)
    gates = gates.where(torch.rand(gates.shape) < 0.6, torch.zeros(()))
    found, before = [], torch.get_num_threads()
    for threads in (1, 2, 2):
        torch.set_num_threads(threads)
        y, mean, var = OP(x, gates, None, None, None, None, EPS, True)
        rest = BACKWARD(grad, x, gates, None, None, mean, var, True, EPS, True, True)
        found.append((y, mean, var, *rest))
    torch.set_num_threads(before)
    for one, two, again in zip(*found, strict=True):
        assert torch.equal(one, two) and torch.equal(two, again)


@pytest.mark.parametrize("training, relu", [(True, True), (True, False), (False, True)])
@pytest.mark.parametrize("gate_shape", [(3,), (4, 3)])
def test_gradcheck(training, relu, gate_shape):
    def call(*args):
        return ours(*args, training, relu)

    x, gates, weight, bias = (
        torch.randn(s, dtype=torch.float64, requires_grad=True)
        for s in ((4, 3, 2, 2), gate_shape, (3,), (3,))
    )
    assert torch.autograd.gradcheck(call, (x, gates, weight, bias))
    assert torch.autograd.gradgradcheck(call, (x, gates, weight, bias))


def test_frozen_gates_get_no_gradient():
    x = torch.randn(2, 3, 4, 4, requires_grad=True)
    y = ops.gate_norm(x, torch.tensor([1.0, 0.0, 2.0]), training=True)
    y.square().sum().backward()
    assert x.grad[:, 1].eq(0).all() and x.grad[:, 0].ne(0).any()
    dgates = BACKWARD(y, x, torch.ones(3), None, None, *torch.ones(2, 3), True, EPS, True, False)[1]
    assert dgates.shape == (0,)


def test_running_statistics_are_those_of_torch():
    generator = torch.Generator().manual_seed(1)
    gates = torch.tensor([1.0, 0.0, 1.0, 0.25])
    mine, theirs = ([torch.zeros(4), torch.ones(4)] for _ in range(2))
    for momentum in (0.1, 0.7):
        x = torch.randn(5, 4, 3, 3, generator=generator)
        ops.gate_norm(x, gates, None, None, *mine, training=True, momentum=momentum)
        F.batch_norm(x * gates.view(-1, 1, 1), *theirs, training=True, momentum=momentum)
        torch.testing.assert_close(mine, theirs)
    before = [t.clone() for t in mine]
    ops.gate_norm(x, gates, None, None, *mine)
    assert all(torch.equal(a, b) for a, b in zip(mine, before, strict=True))


def test_empty_batch_in_eval():
    y = ops.gate_norm(torch.zeros(0, 3, 2, 2), torch.ones(3), None, None, *torch.ones(2, 3))
    assert y.shape == (0, 3, 2, 2)


@pytest.mark.parametrize("training", [False, True])
@pytest.mark.parametrize("last", [False, True])
def test_opcheck(training, last):
    x = torch.randn(2, 3, 4, 5)
    x = x.contiguous(memory_format=torch.channels_last) if last else x
    leaves = [x, torch.randn(3), torch.randn(3), torch.randn(3)]
    leaves = [t.requires_grad_() for t in leaves]
    statistics = (None, None) if training else tuple(torch.ones(2, 3))
    torch.library.opcheck(torch.ops.evoprune.gate_norm.default, (*leaves, *statistics, 1e-5, True))
    args = (
        torch.randn(2, 3, 4, 5),
        *leaves,
        torch.zeros(3),
        torch.ones(3),
        training,
        1e-5,
        True,
        True,
    )
    torch.library.opcheck(torch.ops.evoprune.gate_norm_backward.default, args)


def test_compiles_as_one_graph():
    def step(x, gates, weight, mean, var):
        return (
            ops.gate_norm(x, gates, weight, None, mean, var, training=True, relu=True)
            .square()
            .sum()
        )

    results = []
    for call in (step, torch.compile(step, backend="aot_eager", fullgraph=True)):
        torch.manual_seed(0)
        x, gates, weight = (torch.randn(s, requires_grad=True) for s in ((2, 3, 4, 4), 3, 3))
        mean, var = torch.zeros(3), torch.ones(3)
        call(x, gates, weight, mean, var).backward()
        results.append((x.grad, gates.grad, weight.grad, mean, var))
    for eager, compiled in zip(*results, strict=True):
        torch.testing.assert_close(compiled, eager)


ONE, GATES = torch.zeros(2, 3, 4), torch.ones(3)


@pytest.mark.parametrize(
    "args, options, error, message",
    [
        ((torch.zeros(3), GATES), {}, ValueError, "2 dimensions or more, got 1"),
        ((ONE, torch.ones(4)), {}, ValueError, r"\(3,\) or \(2, 3\), got \(4,\)"),
        ((ONE.int(), GATES), {}, ValueError, "float dtype, got torch.int32"),
        ((ONE, GATES.half()), {}, TypeError, "got torch.float16"),
        ((ONE, GATES, torch.ones(2)), {}, ValueError, r"weight of shape \(3,\), got \(2,\)"),
        ((ONE, GATES, None, None, GATES), {}, ValueError, "running_mean and running_var unless"),
        ((ONE[:1, :, :1], GATES), {"training": True}, ValueError, "more than 1 value .* got 1"),
        ((ONE[:0], GATES), {"training": True}, ValueError, "more than 1 value .* got 0"),
    ],
)
def test_bad_input(args, options, error, message):
    with pytest.raises(error, match=message):
        ops.gate_norm(*args, **options)
