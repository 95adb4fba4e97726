"""``select_block`` on the simulated GPU: masks bitwise those of the reference."""

from __future__ import annotations

import pytest
import torch

from evoprune_kernels.ops.select_block.cases import CASES
from evoprune_kernels.ops.select_block.reference import select_block_reference


def same(gpu, scores, bn, bk, density):
    """The mask of the kernels; it must be that of the reference."""
    mask = gpu.call("select_block", scores, bn, bk, density)
    assert torch.equal(mask, select_block_reference(scores, bn, bk, density))
    return mask


def wide_range(shape):
    """Scores whose sums depend on their order, and many blocks of nearly the same sum."""
    return torch.randn(shape) * torch.randint(0, 2, shape) * 2.0 ** torch.randint(-60, 3, shape)


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_masks_are_those_of_the_reference(gpu, case):
    same(gpu, *case.args())


@pytest.mark.parametrize("bn, bk", [(1, 4), (4, 1), (3, 5), (16, 16), (2, 12), (1, 128), (64, 8)])
def test_block_shapes_and_tails(gpu, bn, bk):
    same(gpu, torch.randn(23, 72), bn, bk, 0.4)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("bn, bk", [(3, 8), (2, 12)])
def test_16_bit_scores(gpu, bn, bk, dtype):
    same(gpu, torch.randn(23, 72).to(dtype), bn, bk, 0.4)


@pytest.mark.parametrize("bn, bk", [(1, 64), (4, 7), (16, 24)])
def test_sums_in_the_order_of_the_reference(gpu, bn, bk):
    """One row of blocks twice, its sums rounded: a tie, and the first row wins it."""
    half = wide_range((bn, 5 * bk))
    scores = torch.cat([half, half])
    scores[bn:, : 2 * bk] += 2.0**-58
    same(gpu, scores, bn, bk, 0.4)


@pytest.mark.parametrize("columns, bk", [(2500, 2500), (2500, 1100), (2049, 3), (3072, 1024)])
def test_rows_wider_than_a_thread_block(gpu, columns, bk):
    same(gpu, wide_range((3, columns)), 1, bk, 0.5)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
def test_views_that_are_not_aligned(gpu, dtype):
    scores = torch.randn(20 * 16 + 1).to(dtype)[1:].view(20, 16)
    same(gpu, scores, 4, 4, 0.5)


def test_non_contiguous(gpu):
    same(gpu, torch.randn(24, 20).t(), 4, 4, 0.3)


def test_two_runs_give_the_same_mask(gpu):
    scores = torch.randint(0, 2, (16, 64)).float()
    assert torch.equal(same(gpu, scores, 2, 4, 0.4), same(gpu, scores, 2, 4, 0.4))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_memory_is_moved_once_and_in_whole_sectors(gpu, dtype):
    scores = torch.randn(32, 1024).to(dtype)
    same(gpu, scores, 16, 16, 0.5)
    name, sums = gpu.launches[0]
    assert "sums" in name
    size = scores.numel() * scores.element_size()
    assert sums["global.load.sectors"] * 32 == sums["global.load.bytes"] == size
    assert sums["global.load.requests"] == size // 512
    assert sums["global.store.sectors"] * 32 == sums["global.store.bytes"] == 2 * 64 * 8
    name, mask = gpu.launches[-1]
    assert "select_block_mask" in name
    assert mask["global.store.sectors"] * 32 == mask["global.store.bytes"] == scores.numel()
    assert mask["global.store.requests"] == scores.numel() // 512


@pytest.mark.parametrize(
    "args, message",
    [
        ((torch.zeros(4), 2, 2, 0.5), "expected scores of 2 dimensions, got 1"),
        ((torch.zeros(4, 4), 0, 2, 0.5), "got bn=0, bk=2"),
        ((torch.zeros(4, 4), 2, -1, 0.5), "got bn=2, bk=-1"),
        ((torch.zeros(4, 4), 2, 2, 1.5), "got density=1.5"),
        ((torch.zeros(4, 4, dtype=torch.float64), 2, 2, 0.5), "dtype Double, expected Float"),
    ],
)
def test_bad_input_launches_nothing(gpu, args, message):
    with pytest.raises(RuntimeError, match=message):
        gpu.call("select_block", *args)
    assert gpu.launches == []
