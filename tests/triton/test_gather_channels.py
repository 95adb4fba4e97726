"""``gather_channels`` and ``scatter_channels`` in Triton: bits, layouts, repeats, gradients, memory requests."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from evoprune_kernels.nn import GatedConv2d
from evoprune_kernels.ops import OPS
from evoprune_kernels.ops.gather_channels.cases import CASES, SCATTER_CASES
from evoprune_kernels.ops.gather_channels.reference import (
    gather_channels_reference,
    scatter_channels_reference,
)
from tests.nn.gated_layers import closed_layer
from tests.ptxsim.launch import Launch
from tests.triton.registered import on_cpu

INTEGERS = {1: torch.uint8, 2: torch.int16, 4: torch.int32, 8: torch.int64}


def bits(t):
    t = torch.view_as_real(t) if t.is_complex() else t
    return t.contiguous().view(INTEGERS[t.element_size()])


def check_gather(run, x, index):
    y, expected = run("gather_channels", x, index), gather_channels_reference(x, index)
    assert torch.equal(bits(y), bits(expected)) and y.dtype == x.dtype
    assert y.stride() == OPS["gather_channels"](x.to("meta"), index.to("meta")).stride()
    return y


def check_scatter(run, x, index, channels):
    """Bitwise the reference, which adds to +0.0: so -0.0 is compared as a number."""
    y, expected = (
        run("scatter_channels", x, index, channels),
        scatter_channels_reference(x, index, channels),
    )
    same = (y == expected) | ((y != y) & (expected != expected))
    assert same.all() and y.dtype == x.dtype
    assert y.stride() == OPS["scatter_channels"](x.to("meta"), index.to("meta"), channels).stride()
    return y


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_gather(run, case):
    check_gather(run, *case.args())


@pytest.mark.parametrize("case", SCATTER_CASES, ids=lambda case: case.name)
def test_scatter(run, case):
    check_scatter(run, *case.args())


@pytest.mark.parametrize("last", [False, True])
@pytest.mark.parametrize("dtype", [
    torch.int64, torch.int32, torch.int16, torch.int8, torch.uint8, torch.bool, torch.complex64, torch.complex128,
])  # fmt: skip
def test_other_dtypes(run, dtype, last):
    """With channels that are added, where integers wrap around and bool is "or"."""
    order = torch.channels_last if last else torch.contiguous_format
    x = torch.arange(2 * 5 * 12).view(2, 5, 3, 4) % 50 * 3
    x = (x % 2 if dtype == torch.bool else x).to(dtype).contiguous(memory_format=order)
    check_gather(run, x, torch.tensor([4, 0, 0]))
    check_scatter(run, x, torch.tensor([1, 3, 1, 0, 1]), 6)


def test_what_cannot_be_added_can_be_gathered(run):
    x = torch.randn(2, 3, 5).to(torch.float8_e4m3fn)
    y = run("gather_channels", x, torch.tensor([2, 0]))
    assert torch.equal(y.view(torch.uint8), x.view(torch.uint8)[:, [2, 0]])


@pytest.mark.parametrize("last", [False, True])
def test_special_values_are_moved_as_they_are(run, last):
    """A payload of NaN, -0.0, infinity, a denormal."""
    order = torch.channels_last if last else torch.contiguous_format
    x = torch.tensor([0x7FC12345, -(2**31), 0x7F800000, 1], dtype=torch.int32).view(torch.float32)
    x = x.view(1, 4, 1, 1).expand(2, 4, 3, 3).contiguous(memory_format=order)
    index = torch.tensor([3, 0, 4, 1])
    y = run("scatter_channels", x, index, 6)
    assert torch.equal(bits(y[:, index]), bits(x))
    assert torch.equal(bits(y[:, [2, 5]]), torch.zeros(2, 2, 3, 3, dtype=torch.int32))
    assert torch.equal(bits(run("gather_channels", y, index)), bits(x))


@pytest.mark.parametrize("last", [False, True])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_repeats_are_added_in_the_order_of_the_index(run, last, dtype):
    """Rounded after every addition, as the reference does on the CPU: another order gives other bits."""
    order = torch.channels_last if last else torch.contiguous_format
    torch.manual_seed(0)
    x = (torch.randn(2, 300, 3, 3) * 100).to(dtype).contiguous(memory_format=order)
    index = torch.randint(0, 9, (300,))
    y = check_scatter(run, x, index, 10)
    other = scatter_channels_reference(x.flip(1), index.flip(0), 10)
    assert not torch.equal(y, other)
    assert y[:, 9].eq(0).all()


def test_planes_of_several_parts_and_unaligned_memory(run):
    """2100 places are three tiles; everything starts one element after a multiple of 16 bytes."""
    buffer = torch.randn(1 + 2 * 3 * 2100).half()
    x = buffer[1:].view(2, 3, 2100)
    check_gather(run, x, torch.tensor([2, 0]))
    check_scatter(run, x, torch.tensor([2, 0, 2]), 4)


def test_views(run):
    x = torch.randn(4, 6, 5, 7)[:, ::2, :, 1:]
    index = torch.tensor([2, 9, 1, 9])[::2]
    assert check_gather(run, x, index).is_contiguous()
    check_scatter(run, x, torch.tensor([3, 0, 2]), 5)
    turned = torch.randn(2, 3, 5, 4).transpose(2, 3)
    check_gather(run, turned, index)
    check_scatter(run, turned, torch.tensor([3, 0, 2]), 5)


@pytest.mark.parametrize("shape", [(2, 4, 3, 3), (3, 4)])
def test_an_index_outside_reads_and_writes_nothing_there(run, shape):
    """The wrapper raises; where it cannot look (compiled), memory stays safe."""
    x = torch.randn(shape)
    y = run("gather_channels", x, torch.tensor([4, 1, -1]))
    assert torch.equal(y[:, 1], x[:, 1]) and y[:, [0, 2]].eq(0).all()
    back = run("scatter_channels", x, torch.tensor([5, -1, 0, 2**40]), 5)
    assert torch.equal(back[:, 0], x[:, 2]) and back[:, 1:].eq(0).all()


@pytest.fixture
def last_program(simulated, monkeypatch):
    """Of a grid the last program alone runs, and of a large tensor it may touch the last bytes alone."""
    driver, first = simulated.driver, [0]
    launch, know, registers = driver.launch, driver.know, Launch._special_registers

    def launch_last(kernel, grid, values):
        alone = kernel.name != "channel_links_kernel"
        first[0] = grid[0] - 1 if alone else 0
        launch(kernel, (1, 1, 1) if alone else grid, values)

    def know_last(tensor):
        know(tensor.view(-1)[-512:] if tensor.numel() > 2**24 else tensor)

    def registers_of_last(self):
        found = registers(self)
        found["%ctaid.x"] += np.uint32(first[0])
        return found

    monkeypatch.setattr(torch.utils.deterministic, "fill_uninitialized_memory", False)
    monkeypatch.setattr(driver, "launch", launch_last)
    monkeypatch.setattr(driver, "know", know_last)
    monkeypatch.setattr(Launch, "_special_registers", registers_of_last)
    return simulated


@pytest.mark.parametrize("shape", [(3, 11, 2**26 + 40), (2**25 + 5, 65)], ids=["planes", "rows"])
def test_offsets_are_64_bits_wide(last_program, shape):
    """Tensors of more than 2^31 elements, of which nothing but the end is ever written: they take no memory."""
    channels = shape[1]
    x = torch.empty(shape, dtype=torch.uint8)
    end = x[-1, -1, -30:] if x.dim() == 3 else x[-5:, 1:]
    end.copy_(torch.arange(end.numel()).view(end.shape) % 251)
    index = torch.arange(1, channels)
    y = last_program.call("gather_channels", x, index)
    assert y.view(-1)[-1] == end.reshape(-1)[-1] != 0
    assert torch.equal(y.view(-1)[-30:], x.view(-1)[-30:])
    back = last_program.call("scatter_channels", y, index, channels)
    written = (-1, -1, slice(-30, None)) if x.dim() == 3 else (slice(-5, None), -1)
    assert torch.equal(back[written], x[written])


@pytest.mark.parametrize("last", [False, True])
def test_closed_channels_are_skipped_through_the_kernels(simulated, last):
    """``skip_closed``: the open channels are scattered into zeros, and their gradients gathered."""
    layer = closed_layer(GatedConv2d, 4, 24, 3, closed=range(0, 24, 2))
    x = torch.randn(2, 4, 6, 6)
    x = x.contiguous(memory_format=torch.channels_last) if last else x
    expected = layer(x)
    wanted = torch.autograd.grad(expected.square().sum(), layer.weight)
    with on_cpu(simulated, "evoprune::gather_channels", "evoprune::scatter_channels") as launched:
        y = layer(x)
        found = torch.autograd.grad(y.square().sum(), layer.weight)
    assert torch.equal(y, expected) and torch.equal(found[0], wanted[0])
    kind = "rows" if y.is_contiguous(memory_format=torch.channels_last) else "planes"
    assert launched == ["channel_links_kernel", f"scatter_{kind}_kernel", f"gather_{kind}_kernel"]
    assert (kind == "rows") == last


def test_autograd_goes_through_the_kernels(simulated):
    x, index = torch.randn(2, 5, 4, 4, requires_grad=True), torch.tensor([4, 0, 4])
    grad = torch.randn(2, 3, 4, 4)
    expected = torch.autograd.grad(OPS["gather_channels"](x, index), x, grad)
    with on_cpu(
        simulated, "evoprune_triton::gather_channels", "evoprune::scatter_channels"
    ) as launched:
        found = torch.autograd.grad(OPS["gather_channels"].triton[0](x, index), x, grad)
    assert torch.equal(found[0], expected[0])
    assert launched == ["gather_planes_kernel", "channel_links_kernel", "scatter_planes_kernel"]
    some = torch.randn(2, 3, requires_grad=True)
    wide = torch.randn(2, 5)
    expected = torch.autograd.grad(OPS["scatter_channels"](some, index, 5), some, wide)
    with on_cpu(
        simulated, "evoprune_triton::scatter_channels", "evoprune::gather_channels"
    ) as launched:
        found = torch.autograd.grad(OPS["scatter_channels"].triton[0](some, index, 5), some, wide)
    assert torch.equal(found[0], expected[0])
    assert launched == ["channel_links_kernel", "scatter_rows_kernel", "gather_rows_kernel"]


# ---- memory ----
@pytest.mark.parametrize("last", [False, True])
def test_every_byte_is_moved_once(simulated, last):
    """Half of 64 channels, the even ones: in channels_last every sector of x holds some of them."""
    order = torch.channels_last if last else torch.contiguous_format
    x = torch.randn(4, 64, 8, 8).half().contiguous(memory_format=order)
    index = torch.arange(0, 64, 2)
    y = simulated.call("gather_channels", x, index)
    stats = simulated.stats
    assert stats["global.store.sectors"] * 32 == stats["global.store.bytes"] == y.nbytes
    assert stats["global.load.footprint"] == (x.nbytes if last else y.nbytes) + index.nbytes
    back = simulated.call("scatter_channels", y, index, 64)
    _, stats = simulated.launches[1]
    assert stats["global.store.sectors"] * 32 == stats["global.store.bytes"] == back.nbytes
    assert stats["global.load.footprint"] == y.nbytes + (64 + 32) * 4
