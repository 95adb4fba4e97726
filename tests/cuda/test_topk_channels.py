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


def test_thousands_of_channels(gpu):
    """As many as the op promises everywhere, ties included; shared memory without bank conflicts."""
    scores = torch.randint(-500, 500, (8192,)).float()
    assert torch.equal(
        gpu.call("topk_channels", scores, 3000), topk_channels_reference(scores, 3000)
    )
    stats = gpu.stats
    assert stats["shared.load.wavefronts"] == stats["shared.load.ideal"]
    assert stats["global.load.sectors"] * 32 == stats["global.load.bytes"] == 8192 * 4


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
        ((torch.zeros(50_000), 1), "ranks at most 41472 channels, got 50000"),
    ],
)
def test_bad_input_launches_nothing(gpu, args, message):
    with pytest.raises(RuntimeError, match=message):
        gpu.call("topk_channels", *args)
    assert gpu.launches == []
