"""``channel_gate`` and its backward in Triton: values, gradients, closed channels, what memory requests cost."""

from __future__ import annotations

import pytest
import torch

from evoprune_kernels.ops import OPS
from evoprune_kernels.ops.channel_gate.cases import CASES
from evoprune_kernels.ops.channel_gate.reference import (
    channel_gate_backward_reference,
    channel_gate_reference,
)
from tests.tolerance import assert_accurate
from tests.triton.registered import on_cpu


def bits(t):
    return t.view({2: torch.int16, 4: torch.int32}[t.element_size()])


def unaligned(t):
    """The same values one element after a multiple of 16 bytes, in the same order."""
    buffer = torch.empty(t.numel() + 1, dtype=t.dtype)
    return buffer[1:].as_strided(t.shape, t.stride(), 1).copy_(t)


def check_forward(run, x, gates):
    """One product, rounded once: bitwise the reference."""
    y, expected = run("channel_gate", x, gates), channel_gate_reference(x, gates)
    same = (bits(y) == bits(expected)) | (y.isnan() & expected.isnan())
    assert same.all() and y.stride() == expected.stride() and y.dtype == x.dtype


def check_backward(run, grad, x, gates):
    dx, dgates = run("channel_gate_backward", grad, x, gates)
    expected = channel_gate_backward_reference(grad, x, gates)
    assert torch.equal(bits(dx), bits(expected[0])) and dx.stride() == expected[0].stride()
    truth = channel_gate_backward_reference(grad.double(), x.double(), gates.double())[1]
    assert_accurate(dgates, truth, expected[1])
    return dgates


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_forward_and_backward(run, case):
    x, gates = case.args()
    torch.manual_seed(0)
    check_forward(run, x, gates)
    check_backward(run, torch.randn(x.shape).to(x.dtype), x, gates)


@pytest.mark.parametrize("last", [False, True])
@pytest.mark.parametrize("per_sample", [False, True])
def test_several_parts_of_a_sum_and_unaligned_memory(run, last, per_sample):
    """More than one part of a plane and of the rows; two runs give the same bits."""
    torch.manual_seed(0)
    order = torch.channels_last if last else torch.contiguous_format
    x, grad = (unaligned(torch.randn(2, 3, 67, 67).contiguous(memory_format=order)) for _ in "xg")
    gates = torch.tensor([[0.5, 0.0, -2.0], [0.0, 1.0, 3.0]])
    gates = gates if per_sample else gates[0]
    check_forward(run, x, gates)
    first = check_backward(run, grad, x, gates)
    assert torch.equal(bits(first), bits(run("channel_gate_backward", grad, x, gates)[1]))


def test_a_wide_row_of_channels(run):
    x = torch.randn(3, 150, 2, 2).half().contiguous(memory_format=torch.channels_last)
    check_backward(run, torch.randn_like(x), x, torch.randn(150))


def test_views_and_a_contiguous_gradient_of_a_channels_last_activation(run):
    x = torch.randn(2, 3, 4, 5).contiguous(memory_format=torch.channels_last)
    check_backward(run, torch.randn(2, 3, 4, 5), x, torch.randn(3))
    x = torch.randn(2, 3, 5, 4).transpose(2, 3)
    check_forward(run, x, torch.randn(3))
    check_backward(run, torch.randn(2, 3, 4, 5), x, torch.randn(3))


def test_autograd_goes_through_the_kernels(simulated):
    x, gates = torch.randn(2, 3, 4, 4), torch.tensor([0.5, 0.0, 2.0])
    grad, leaves = torch.randn(2, 3, 4, 4), [x.requires_grad_(), gates.requires_grad_()]
    expected = torch.autograd.grad(OPS["channel_gate"](x, gates), leaves, grad)
    backward = "evoprune::channel_gate_backward"
    with on_cpu(simulated, "evoprune_triton::channel_gate", backward) as launched:
        found = torch.autograd.grad(OPS["channel_gate"].triton[0](x, gates), leaves, grad)
    for mine, other in zip(found, expected, strict=True):
        torch.testing.assert_close(mine, other)
    assert set(launched) == {
        "channel_gate_kernel", "channel_gate_planes_kernel", "channel_gate_sums_kernel",
    }  # fmt: skip


# ---- memory ----
@pytest.mark.parametrize("last", [False, True])
def test_every_byte_is_moved_once(simulated, last):
    order = torch.channels_last if last else torch.contiguous_format
    x = torch.randn(4, 64, 8, 8).half().contiguous(memory_format=order)
    gates, size = torch.rand(64) + 0.5, x.numel() * 2
    simulated.call("channel_gate", x, gates)
    stats = simulated.stats
    assert stats["global.store.sectors"] * 32 == stats["global.store.bytes"] == size
    assert stats["global.load.footprint"] == size + 64 * 4
    simulated.call("channel_gate_backward", torch.randn_like(x), x, gates)
    _, stats = simulated.launches[0]
    assert stats["global.load.footprint"] == 2 * size + 64 * 4
    assert stats["global.store.sectors"] * 32 == stats["global.store.bytes"] <= size + 4 * 64 * 4


def test_closed_channels_are_not_read(simulated):
    x = torch.full((2, 8, 16, 16), float("nan"))
    gates = torch.tensor([0.0, 1.0, 0.0, -0.0, 0.0, 0.0, 0.0, 0.0])
    x[:, 1] = 1.0
    y = simulated.call("channel_gate", x, gates)
    assert y[:, 1].eq(1).all() and y.sum() == 2 * 256
    assert simulated.stats["global.load.footprint"] == 2 * 256 * 4 + 32
