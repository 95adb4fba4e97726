"""``select_nm`` on the simulated GPU: masks bitwise those of the reference."""

from __future__ import annotations

import pytest
import torch

from evoprune_kernels.ops.select_nm.cases import CASES
from evoprune_kernels.ops.select_nm.reference import select_nm_reference


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_masks_are_those_of_the_reference(gpu, case):
    args = case.args()
    assert torch.equal(gpu.call("select_nm", *args), select_nm_reference(*args))


def same(gpu, scores, n, m):
    """The mask of the kernel; it must be that of the reference."""
    mask = gpu.call("select_nm", scores, n, m)
    assert torch.equal(mask, select_nm_reference(scores, n, m))
    return mask


def scores_with_all(shape, dtype):
    """Many ties, and every kind of value."""
    special = torch.tensor([float("nan"), float("-inf"), float("inf"), -0.0, 0.0, 1e-7, -1.0, 2.0])
    return special[torch.randint(0, 8, shape)].to(dtype)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
@pytest.mark.parametrize("m", [2, 4, 8, 16, 32])
def test_whole_groups(gpu, m, dtype):
    for n in (1, m // 2, m - 1):
        same(gpu, scores_with_all((5, 64), dtype), n, m)
    same(gpu, torch.randn(33, 96).to(dtype), m // 2, m)  # more than one vector a lane
    assert all("select_nm_kernel" in name for name, _ in gpu.launches)


@pytest.mark.parametrize("m", [1, 3, 4, 7, 31, 32])
@pytest.mark.parametrize("columns", [1, 3, 33, 1030])
def test_any_group_and_tails(gpu, m, columns):
    same(gpu, scores_with_all((5, columns), torch.float32), (m + 1) // 2, m)
    same(gpu, scores_with_all((3, columns), torch.bfloat16), 1, m)


def test_a_row_longer_than_a_block_takes(gpu):
    same(gpu, torch.randn(2, 4099), 2, 5)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
def test_views_that_are_not_aligned(gpu, dtype):
    scores = torch.randn(20 * 12 + 1).to(dtype)[1:].view(20, 12)
    same(gpu, scores, 2, 4)
    assert all("select_nm_any_kernel" in name for name, _ in gpu.launches)


def test_non_contiguous(gpu):
    same(gpu, torch.randn(24, 20).t(), 2, 4)


def test_two_runs_give_the_same_mask(gpu):
    scores = scores_with_all((16, 64), torch.float32)
    assert torch.equal(same(gpu, scores, 2, 4), same(gpu, scores, 2, 4))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("m", [4, 16])
def test_memory_is_moved_once_and_in_whole_sectors(gpu, m, dtype):
    scores = torch.randn(32, 256).to(dtype)
    same(gpu, scores, 2, m)
    stats = gpu.stats
    size = scores.numel() * scores.element_size()
    assert stats["global.load.sectors"] * 32 == stats["global.load.bytes"] == size
    assert stats["global.load.requests"] == size // 512
    assert stats["global.store.sectors"] * 32 == stats["global.store.bytes"] == scores.numel()


def test_any_kernel_reads_each_score_once_without_bank_conflicts(gpu):
    scores = torch.randn(8, 250)
    same(gpu, scores, 2, 5)
    stats = gpu.stats
    assert stats["global.load.bytes"] == scores.numel() * 4
    assert stats["global.store.bytes"] == scores.numel()
    assert stats["shared.load.wavefronts"] == stats["shared.load.ideal"]
    assert stats["shared.store.wavefronts"] == stats["shared.store.ideal"]


@pytest.mark.parametrize(
    "args, message",
    [
        ((torch.zeros(4, 4), 5, 4), "got n=5 m=4"),
        ((torch.zeros(4), 2, 4), "expected scores of 2 dimensions, got 1"),
        ((torch.zeros(4, 4, dtype=torch.float64), 2, 4), "dtype Double, expected Float"),
    ],
)
def test_bad_input_launches_nothing(gpu, args, message):
    with pytest.raises(RuntimeError, match=message):
        gpu.call("select_nm", *args)
    assert gpu.launches == []


def test_an_old_device_is_refused(gpu):
    try:
        gpu.attributes[75] = 7
        with pytest.raises(RuntimeError, match=r"capability 8\.0, got 7\.0"):
            gpu.call("select_nm", torch.zeros(4, 4), 2, 4)
    finally:
        gpu.attributes[75] = 8
