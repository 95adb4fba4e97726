"""``topk_channels`` on the simulated GPU: indices bitwise those of the reference."""

from __future__ import annotations

import pytest
import torch

from evoprune_kernels.ops.topk_channels.cases import CASES
from evoprune_kernels.ops.topk_channels.reference import topk_channels_reference


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_indices_are_those_of_the_reference(gpu, case):
    args = case.args()
    indices = gpu.call("topk_channels", *args)
    assert indices.dtype == torch.int64
    assert torch.equal(indices, topk_channels_reference(*args))


@pytest.mark.parametrize("channels", [8192, 9001])  # 9001: more than the registers of a block hold
def test_thousands_of_channels(gpu, channels):
    """Ties included; shared memory without bank conflicts."""
    scores = torch.randint(-500, 500, (channels,)).float()
    assert torch.equal(
        gpu.call("topk_channels", scores, 3000), topk_channels_reference(scores, 3000)
    )
    stats = gpu.stats
    assert stats["shared.load.wavefronts"] == stats["shared.load.ideal"]
    assert stats["global.load.footprint"] == -(-channels * 4 // 32) * 32


def test_equal_scores_take_no_step(gpu):
    """Bits in which all keys agree are not tried: a 16-bit score takes at most half of the steps."""
    scores = torch.full((300,), 2.5)
    assert gpu.call("topk_channels", scores, 7).tolist() == list(range(7))
    barriers = "inst.bar.sync"
    few = gpu.stats[barriers]
    gpu.call("topk_channels", torch.rand(300).half() + 1, 7)
    half = gpu.stats[barriers]
    gpu.call("topk_channels", torch.randn(300), 7)
    assert few < half <= few + 10 * 2 < gpu.stats[barriers]


def test_unaligned_and_transposed(gpu):
    scores = torch.randn(101)[1:]
    assert torch.equal(gpu.call("topk_channels", scores, 9), topk_channels_reference(scores, 9))
    scores = torch.randn(30, 4).t()
    assert torch.equal(gpu.call("topk_channels", scores, 9), topk_channels_reference(scores, 9))


@pytest.mark.parametrize(
    "args, message",
    [
        ((torch.zeros(8), 9), "expected 0 <= k <= 8, got k=9"),
        ((torch.zeros(8), -1), "expected 0 <= k <= 8, got k=-1"),
        ((torch.zeros(2, 2, 2), 1), "1 or 2 dimensions, got 3"),
        ((torch.zeros(8).double(), 1), "dtype Double, expected Float"),
        ((torch.zeros(60_000), 1), r"ranks at most \d+ channels, got 60000"),
    ],
)
def test_bad_input_launches_nothing(gpu, args, message):
    with pytest.raises(RuntimeError, match=message):
        gpu.call("topk_channels", *args)
    assert gpu.launches == []
