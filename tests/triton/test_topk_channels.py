"""``topk_channels`` and ``topk_abs_channels`` in Triton: the indices of the reference."""

from __future__ import annotations

import pytest
import torch

from evoprune_kernels.nn import SSPropConv2d
from evoprune_kernels.ops.topk_channels.cases import CASES
from evoprune_kernels.ops.topk_channels.reference import (
    topk_abs_channels_reference,
    topk_channels_reference,
)
from tests.ops.test_topk_channels import LAYOUTS, integers
from tests.triton.registered import on_cpu


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_indices_are_those_of_the_reference(run, case):
    args = case.args()
    assert torch.equal(run("topk_channels", *args), topk_channels_reference(*args))


def test_several_tiles_and_views(run):
    """Ties in every tile; 4100 channels are three tiles."""
    scores = torch.randint(0, 3, (4101, 2), generator=torch.Generator().manual_seed(0)).float().t()
    scores = scores[:, 1:]
    for k in (1, 2000, 4099):
        found = run("topk_channels", scores, k)
        assert torch.equal(found, topk_channels_reference(scores, k))


def test_indices_are_written_once(simulated):
    index = simulated.call("topk_channels", torch.randn(2, 512), 256)
    assert simulated.stats["global.store.bytes"] == index.nbytes
    assert len(simulated.launches) == 1


# ---- topk_abs_channels ----
WHOLE = [x for x in LAYOUTS if x.dtype != torch.float64]


@pytest.mark.parametrize("x", WHOLE, ids=lambda x: f"{tuple(x.shape)}-{x.dtype}")
def test_the_largest_channels(run, x):
    """Small whole numbers, whose sums are exact in any order: ties are common."""
    for k in {0, 1, x.shape[1] // 2, x.shape[1]}:
        found = run("topk_abs_channels", x, k)
        assert torch.equal(found, topk_abs_channels_reference(x, k)) and found.dtype == torch.int64


@pytest.mark.parametrize("last", [False, True])
def test_several_parts_of_a_sum_and_unaligned_memory(run, last):
    """5041 places are two parts of a plane, and 429 rows two parts, in more than one tile of channels."""
    order = torch.channels_last if last else torch.contiguous_format
    shape = (2, 3, 71, 71) if not last else (3, 70, 11, 13)
    like = torch.empty(shape).contiguous(memory_format=order)
    x = torch.empty(like.numel() + 1)[1:].as_strided(shape, like.stride(), 1)
    x.copy_(integers(*shape))
    for k in (1, 2, shape[1] - 1):
        assert torch.equal(run("topk_abs_channels", x, k), topk_abs_channels_reference(x, k))


@pytest.mark.parametrize("last", [False, True])
def test_a_channel_with_nan_is_the_largest(run, last):
    x = integers(2, 6, 4, 4, last=last)
    x[1, 3, 2, 1], x[0, 5, 0, 0] = float("nan"), float("-inf")
    assert run("topk_abs_channels", x, 2).tolist() == [3, 5]
    assert run("topk_abs_channels", x, 1).tolist() == [3]  # a tie: the lowest index


def test_sums_of_float16_are_in_float32(run):
    """Both overflow in float16; the sum of the second is larger."""
    x = torch.full((1, 2, 300), 400.0).half()
    x[0, 1, 0] += 1
    assert run("topk_abs_channels", x, 1).tolist() == [1]


@pytest.mark.parametrize("last", [False, True])
def test_every_byte_is_read_once(simulated, last):
    x = integers(4, 64, 8, 8, last=last, dtype=torch.float16)
    simulated.call("topk_abs_channels", x, 32)
    names = [name for name, _ in simulated.launches]
    kind = "rows" if last else "planes"
    assert names == [
        f"channel_abs_{kind}_kernel",
        "channel_gate_sums_kernel",
        "topk_channels_kernel",
    ]
    stats = simulated.launches[0][1]
    assert stats["global.load.footprint"] == x.nbytes
    assert stats["global.store.bytes"] == (1 if last else 4) * 64 * 4


def test_ssprop_chooses_through_the_kernels(simulated):
    """Its backward sums, chooses and gathers."""
    torch.manual_seed(0)
    layer = SSPropConv2d(3, 8, 3, kept=0.25)
    x, grad = torch.randn(2, 3, 6, 6, requires_grad=True), torch.randn(2, 8, 4, 4)
    leaves = [x, *layer.parameters()]
    expected = torch.autograd.grad(layer(x), leaves, grad)
    with on_cpu(simulated, "evoprune::topk_abs_channels", "evoprune::gather_channels") as launched:
        found = torch.autograd.grad(layer(x), leaves, grad)
    assert all(torch.equal(a, b) for a, b in zip(found, expected, strict=True))
    assert launched == [
        "channel_abs_planes_kernel", "channel_gate_sums_kernel", "topk_channels_kernel", "gather_planes_kernel",
    ]  # fmt: skip
