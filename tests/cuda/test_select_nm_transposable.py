"""``select_nm_transposable`` on the simulated GPU: masks bitwise those of the reference."""

from __future__ import annotations

import pytest
import torch

from evoprune_kernels.ops.select_nm_transposable.cases import CASES
from evoprune_kernels.ops.select_nm_transposable.reference import select_nm_transposable_reference

DTYPES = [torch.float32, torch.float16, torch.bfloat16]


def same(gpu, scores):
    """The mask of the kernel; it must be that of the reference."""
    mask = gpu.call("select_nm_transposable", scores)
    assert torch.equal(mask, select_nm_transposable_reference(scores))
    return mask


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_masks_are_those_of_the_reference(gpu, case):
    same(gpu, *case.args())


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", [(5, 7), (30, 64), (64, 33)])
def test_special_values(gpu, shape, dtype):
    special = torch.tensor([float("nan"), float("-inf"), float("inf"), -0.0, 0.0, 1e-3, -1.0, 2.0])
    same(gpu, special[torch.randint(0, 8, shape)].to(dtype))


def test_sums_are_rounded_in_the_order_of_the_reference(gpu):
    same(gpu, torch.randn(32, 64) * 2.0 ** torch.randint(-24, 3, (32, 64)))


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("offset", [1, 4])
def test_views_that_are_not_aligned(gpu, dtype, offset):
    same(gpu, torch.randn(20 * 16 + offset).to(dtype)[offset:].view(20, 16))


def test_non_contiguous(gpu):
    same(gpu, torch.randn(24, 20).t())


def test_two_runs_give_the_same_mask(gpu):
    scores = torch.randint(0, 2, (16, 64)).float()
    assert torch.equal(same(gpu, scores), same(gpu, scores))


@pytest.mark.parametrize("dtype", DTYPES)
def test_memory_is_moved_once_and_in_whole_sectors(gpu, dtype):
    scores = torch.randn(8, 256).to(dtype)
    same(gpu, scores)
    stats = gpu.stats
    size = scores.numel() * scores.element_size()
    assert stats["global.load.sectors"] * 32 == stats["global.load.bytes"] == size
    assert stats["global.load.requests"] == scores.numel() // 128
    assert stats["global.store.sectors"] * 32 == stats["global.store.bytes"] == scores.numel()


@pytest.mark.parametrize(
    "scores, message",
    [
        (torch.zeros(4), "expected scores of 2 dimensions, got 1"),
        (torch.zeros(4, 4, dtype=torch.float64), "dtype Double, expected Float"),
    ],
)
def test_bad_input_launches_nothing(gpu, scores, message):
    with pytest.raises(RuntimeError, match=message):
        gpu.call("select_nm_transposable", scores)
    assert gpu.launches == []
