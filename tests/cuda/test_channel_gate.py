"""``channel_gate`` on the simulated GPU: values, gradients, closed channels, what the memory requests cost."""

from __future__ import annotations

import pytest
import torch

from evoprune_kernels.ops.channel_gate.cases import CASES
from evoprune_kernels.ops.channel_gate.reference import (
    channel_gate_backward_reference,
    channel_gate_reference,
)
from tests.tolerance import assert_accurate


def unaligned(t: torch.Tensor) -> torch.Tensor:
    """The same values one element after a multiple of 16 bytes, in the same order."""
    buffer = torch.empty(t.numel() + 1, dtype=t.dtype)
    return buffer[1:].as_strided(t.shape, t.stride(), 1).copy_(t)


def bits(t: torch.Tensor) -> torch.Tensor:
    return t.view({2: torch.int16, 4: torch.int32}[t.element_size()])


@pytest.mark.parametrize("move", [lambda t: t, unaligned], ids=["aligned", "unaligned"])
@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_forward(gpu, case, move):
    """One product, rounded once: bitwise the reference."""
    x, gates = case.args()
    y = gpu.call("channel_gate", move(x) if x.numel() else x, gates)
    expected = channel_gate_reference(x, gates)
    same = (bits(y) == bits(expected)) | (y.isnan() & expected.isnan())
    assert same.all() and y.stride() == x.stride() and y.dtype == x.dtype


@pytest.mark.parametrize("move", [lambda t: t, unaligned], ids=["aligned", "unaligned"])
@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_backward(gpu, case, move):
    x, gates = case.args()
    grad = torch.randn(x.shape).to(x.dtype)
    x, given = (move(x), move(grad.as_strided(x.shape, x.stride()))) if x.numel() else (x, grad)
    grad = given.clone()
    dx, dgates = gpu.call("channel_gate_backward", given, x, gates)
    expected = channel_gate_backward_reference(grad, x, gates)
    assert torch.equal(bits(dx), bits(expected[0])) and dx.stride() == x.stride()
    truth = channel_gate_backward_reference(grad.double(), x.double(), gates.double())[1]
    assert_accurate(dgates, truth, expected[1])


@pytest.mark.parametrize(
    "shape, last",
    [
        ((4, 6, 9, 5), False),
        ((3, 2, 40, 33), False),
        ((2, 2, 130, 64), False),
        ((2, 24, 33, 9), True),
    ],
)
def test_two_runs_give_the_same_bits(gpu, shape, last):
    """Parts of a channel and of the batch are added in a fixed order."""
    order = torch.channels_last if last else torch.contiguous_format
    x = torch.randn(shape).half().contiguous(memory_format=order)
    grad, gates = torch.randn(shape).half(), torch.randn(shape[1])
    first = gpu.call("channel_gate_backward", grad, x, gates)
    second = gpu.call("channel_gate_backward", grad, x, gates)
    assert all(torch.equal(bits(a), bits(b)) for a, b in zip(first, second, strict=True))
    truth = channel_gate_backward_reference(grad.double(), x.double(), gates.double())[1]
    assert_accurate(first[1], truth, channel_gate_backward_reference(grad, x, gates)[1])
    assert len(gpu.launches) == 2


@pytest.mark.parametrize("last", [False, True])
def test_forward_moves_every_byte_once(gpu, last):
    """7x7 planes of float16 start anywhere in a vector, and still no sector is touched twice."""
    order = torch.channels_last if last else torch.contiguous_format
    x = torch.randn(8, 64, 7, 7).half().contiguous(memory_format=order)
    gates = torch.rand(64) + 0.5
    gpu.call("channel_gate", x, gates)
    stats, size = gpu.stats, x.numel() * 2
    assert stats["global.store.sectors"] * 32 == stats["global.store.bytes"] == size
    assert stats["global.load.footprint"] == size + 64 * 4


def test_closed_channels_are_not_read(gpu):
    x = torch.full((2, 8, 16, 16), float("nan"))
    gates = torch.tensor([0.0, 1.0, 0.0, -0.0, 0.0, 0.0, 0.0, 0.0])
    x[:, 1] = 1.0
    y = gpu.call("channel_gate", x, gates)
    assert y[:, 1].eq(1).all() and y.sum() == 2 * 256
    assert gpu.stats["global.load.footprint"] == 2 * 256 * 4 + 32


@pytest.mark.parametrize(
    "shape, last",
    [
        ((8, 64, 7, 7), False),
        ((1, 16, 28, 28), False),
        ((2, 2, 64, 64), False),
        ((2, 64, 8, 8), True),
    ],
)
def test_backward_moves_every_byte_once(gpu, shape, last):
    order = torch.channels_last if last else torch.contiguous_format
    x = torch.randn(shape).half().contiguous(memory_format=order)
    grad = torch.randn_like(x)
    gpu.call("channel_gate_backward", grad, x, torch.randn(shape[1]).half())
    main, size = gpu.launches[0].stats, x.numel() * 2
    assert main["global.load.footprint"] <= 2 * size + 32 * 8
    vectors = main["inst.ld.global.nc.L1::no_allocate.v4.u32"]
    assert vectors * 512 >= 2 * size
    assert main["global.store.bytes"] - size <= 4 * shape[0] * shape[1] * 8
    for kind in ("load", "store"):
        assert main[f"shared.{kind}.wavefronts"] == main[f"shared.{kind}.ideal"]


def test_a_contiguous_gradient_of_a_channels_last_activation(gpu):
    x = torch.randn(2, 3, 4, 5).contiguous(memory_format=torch.channels_last)
    grad, gates = torch.randn(2, 3, 4, 5), torch.randn(3)
    dx, _ = gpu.call("channel_gate_backward", grad, x, gates)
    assert torch.equal(dx, channel_gate_backward_reference(grad, x, gates)[0])
    assert dx.stride() == x.stride()


ONE = torch.zeros(2, 3, 4, 4)


@pytest.mark.parametrize(
    "op, args, message",
    [
        ("channel_gate", (torch.zeros(3), torch.zeros(3)), "2 dimensions or more, got 1"),
        ("channel_gate", (ONE, torch.zeros(4)), r"gates.size\(-1\) = 3, got 4"),
        ("channel_gate", (ONE, torch.zeros(3, 3)), r"gates.size\(0\) = 2, got 3"),
        ("channel_gate", (ONE, torch.zeros(())), "gates of 1 or 2 dimensions, got 0"),
        ("channel_gate", (ONE.double(), torch.zeros(3)), "x has dtype Double, expected Float"),
        ("channel_gate", (ONE, torch.zeros(3).half()), "dtype Float or Float, got Half"),
        ("channel_gate_backward", (ONE.half(), ONE, torch.zeros(3)), "Half, expected Float"),
        ("channel_gate_backward", (ONE[:1], ONE, torch.zeros(3)), "= 2, got 1"),
        ("channel_gate_backward", (ONE[0], ONE, torch.zeros(3)), "of 4 dimensions, got 3"),
    ],
)
def test_bad_input_launches_nothing(gpu, op, args, message):
    with pytest.raises(RuntimeError, match=message):
        gpu.call(op, *args)
    assert gpu.launches == []
