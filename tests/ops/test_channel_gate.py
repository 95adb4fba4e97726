"""channel_gate: literal values, the dense product, closed channels, gradients of first and second order, opcheck."""

from __future__ import annotations

import pytest
import torch

from evoprune_kernels import ops
from evoprune_kernels.ops.channel_gate.cases import CASES
from tests.tolerance import assert_accurate

BACKWARD = ops.channel_gate.BACKWARD


def oracle(x, gates, dtype):
    """The product, written with einsum."""
    x, gates = x.to(dtype), gates.to(dtype)
    axes = "bc" if gates.dim() == 2 else "c"
    y = torch.einsum(f"bc...,{axes}->bc...", x, gates)
    closed = (gates == 0) if gates.dim() == 2 else (gates == 0).expand(x.shape[:2])
    y[closed] = 0
    return y


def oracle_of_gates(grad, x, gates, dtype):
    """The sum of products, written with einsum."""
    sums = torch.einsum("bc...,bc...->bc...", grad.to(dtype), x.to(dtype))
    sums = sums.reshape(*x.shape[:2], -1).sum(2) if x.numel() else sums.new_zeros(x.shape[:2])
    return sums if gates.dim() == 2 else sums.sum(0)


def test_literal():
    x = torch.arange(8.0).view(1, 2, 2, 2)
    assert ops.channel_gate(x, torch.tensor([0.0, 2.0])).flatten().tolist() == [0] * 4 + [
        8,
        10,
        12,
        14,
    ]
    grad = torch.full((1, 2, 2, 2), 0.5)
    dx, dgates = BACKWARD(grad, x, torch.tensor([0.0, 2.0]))
    assert dx.flatten().tolist() == [0.0] * 4 + [1.0] * 4
    assert dgates.tolist() == [3.0, 11.0]


LEVELS = pytest.mark.usefixtures("isa")


@LEVELS
@pytest.mark.parametrize("case", CASES, ids=lambda c: c.name)
def test_matches_the_product(case):
    x, gates = case.args()
    y = ops.channel_gate(x, gates)
    assert_accurate(y, oracle(x, gates, torch.float64), oracle(x, gates, x.dtype))
    assert y.stride() == x.stride()


@LEVELS
@pytest.mark.parametrize("case", CASES, ids=lambda c: c.name)
def test_gradients_match_the_sums(case):
    x, gates = case.args()
    grad = torch.randn(x.shape).to(x.dtype)
    x, gates = x.requires_grad_(), gates.requires_grad_()
    dx, dgates = torch.autograd.grad(ops.channel_gate(x, gates), (x, gates), grad)
    x, gates = x.detach(), gates.detach()
    assert_accurate(dx, oracle(grad, gates, torch.float64), oracle(grad, gates, x.dtype))
    same = oracle_of_gates(grad, x, gates, torch.float32).to(gates.dtype)
    assert_accurate(dgates, oracle_of_gates(grad, x, gates, torch.float64), same)
    assert dx.stride() == x.stride() and dgates.shape == gates.shape


@pytest.mark.parametrize("last", [False, True])
@LEVELS
def test_sums_do_not_depend_on_threads(last):
    """Enough units for two threads; bit for bit, closed channels and special values included."""
    x, grad = torch.randn(2, 6, 37, 90, 50).unbind()
    x[0, 1], x[1, 2, 3] = float("nan"), float("inf")
    if last:
        x, grad = (t.contiguous(memory_format=torch.channels_last) for t in (x, grad))
    gates = torch.randn(37).where(torch.rand(37) < 0.6, torch.zeros(()))
    found = []
    before = torch.get_num_threads()
    for threads in (1, 2, 2):
        torch.set_num_threads(threads)
        found.append(
            [t.view(torch.int32) for t in (*BACKWARD(grad, x, gates), ops.channel_gate(x, gates))]
        )
    torch.set_num_threads(before)
    for one, two, again in zip(*found, strict=True):
        assert torch.equal(one, two) and torch.equal(two, again)


@LEVELS
def test_a_long_sum_is_as_exact_as_torch():
    """Sums of many equal terms, where a single running sum in float32 would stop growing."""
    x = torch.full((1, 2, 1 << 12, 1 << 12), 1.0)
    for given in (x, x.contiguous(memory_format=torch.channels_last)):
        _, dgates = BACKWARD(given, given, torch.ones(2))
        assert dgates.tolist() == [float(1 << 24)] * 2


@LEVELS
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_rounding_is_that_of_torch(dtype):
    """Every pattern of 16 bits times gates that round up, down, to even, to subnormals and to infinity."""
    x = (
        torch.arange(1 << 16)
        .to(torch.int32)
        .sub(1 << 15)
        .to(torch.int16)
        .view(dtype)
        .view(1, 1, -1)
    )
    for gate in (1.0, 1.0009766, 1 / 3, 2.0**-9, 3.0 * 2.0**-20, 2.0**9, -1.5):
        expected = (x.float() * gate).to(dtype)
        y = ops.channel_gate(x, torch.tensor([gate]))
        assert torch.equal(y.isnan(), expected.isnan())
        assert torch.equal(y[~y.isnan()].view(torch.int16), expected[~y.isnan()].view(torch.int16))


@LEVELS
@pytest.mark.parametrize("last", [False, True])
def test_a_closed_channel_is_plus_zero(last):
    """Whatever x and dy hold; its gate still has a gradient."""
    if last:
        x = torch.full((2, 20, 3, 3), float("nan")).contiguous(memory_format=torch.channels_last)
        y = ops.channel_gate(x, torch.full((20,), -0.0))
        assert y.eq(0).all() and not y.signbit().any()
        assert BACKWARD(x, x, torch.zeros(20))[0].eq(0).all()
    x = torch.tensor([[[float("nan"), -1.0]], [[float("inf"), -2.0]]]).transpose(0, 1).contiguous()
    gates = torch.tensor([0.0, -0.0], requires_grad=True)
    y = ops.channel_gate(x.requires_grad_(), gates)
    assert y.eq(0).all() and not y.signbit().any()
    y.backward(torch.tensor([[[0.0, -3.0], [1.0, float("nan")]]]))
    assert x.grad.eq(0).all() and not x.grad.signbit().any()
    assert gates.grad.isnan().all()
    finite = torch.zeros(2, requires_grad=True)
    ops.channel_gate(torch.ones(3, 2, 4), finite).sum().backward()
    assert finite.grad.tolist() == [12.0, 12.0]


def test_frozen_gates_do_not_keep_x():
    x = torch.randn(2, 3, 4, 4, requires_grad=True)
    y = ops.channel_gate(x, torch.tensor([1.0, 0.0, 2.0]))
    assert [saved is None for saved in y.grad_fn.saved_tensors] == [True, False]
    y.sum().backward()
    assert x.grad[0, :, 0, 0].tolist() == [1.0, 0.0, 2.0]


@pytest.mark.parametrize(
    "shape, gate_shape", [((2, 3, 2, 2), (3,)), ((2, 3, 4), (2, 3)), ((4, 3), (3,))]
)
def test_gradcheck(shape, gate_shape):
    x = torch.randn(shape, dtype=torch.float64, requires_grad=True)
    gates = torch.randn(gate_shape, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(ops.channel_gate, (x, gates))
    assert torch.autograd.gradgradcheck(ops.channel_gate, (x, gates))


@pytest.mark.parametrize("last", [False, True])
def test_opcheck(last):
    x = torch.randn(2, 3, 4, 5)
    x = x.contiguous(memory_format=torch.channels_last) if last else x
    args = x.requires_grad_(), torch.randn(3, requires_grad=True)
    torch.library.opcheck(torch.ops.evoprune.channel_gate.default, args)
    grad = torch.randn(2, 3, 4, 5)
    torch.library.opcheck(torch.ops.evoprune.channel_gate_backward.default, (grad, *args))


def test_non_contiguous():
    x = torch.randn(4, 6, 5, 7)[:, ::2, :, 1:]
    gates = torch.randn(3)
    y = ops.channel_gate(x, gates)
    assert torch.equal(y, oracle(x, gates, x.dtype)) and y.is_contiguous()


@pytest.mark.parametrize(
    "x, gates, error, message",
    [
        (torch.zeros(3), torch.zeros(3), ValueError, r"2 dimensions or more, got 1"),
        (torch.zeros(2, 3, 4), torch.zeros(4), ValueError, r"\(3,\) or \(2, 3\), got \(4,\)"),
        (torch.zeros(2, 3), torch.zeros(3, dtype=torch.int64), TypeError, "got torch.int64"),
        (torch.zeros(2, 3).int(), torch.zeros(3), ValueError, "float dtype, got torch.int32"),
        (torch.zeros(2, 3), torch.zeros(3).half(), TypeError, "got torch.float16"),
    ],
)
def test_bad_input(x, gates, error, message):
    with pytest.raises(error, match=message):
        ops.channel_gate(x, gates)
