"""``select_block`` in Triton: masks bitwise those of the reference, sums in its order."""

from __future__ import annotations

import pytest
import torch

from evoprune_kernels.ops.select_block.cases import CASES
from evoprune_kernels.ops.select_block.reference import select_block_reference


def same(run, scores, bn, bk, density):
    mask = run("select_block", scores, bn, bk, density)
    assert torch.equal(mask, select_block_reference(scores, bn, bk, density))


def wide_range(shape):
    """Scores whose sums depend on their order, and many blocks of nearly the same sum."""
    return torch.randn(shape) * torch.randint(0, 2, shape) * 2.0 ** torch.randint(-60, 3, shape)


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_masks_are_those_of_the_reference(run, case):
    same(run, *case.args())


@pytest.mark.parametrize("bn, bk", [(1, 4), (3, 5), (64, 8)])
def test_block_shapes_tails_and_views(run, bn, bk):
    same(run, torch.randn(23, 73).half()[:, 1:], bn, bk, 0.4)


@pytest.mark.parametrize("bn, bk", [(1, 64), (4, 7), (16, 24), (2, 1)])
def test_sums_in_the_order_of_the_reference(run, bn, bk):
    """One row of blocks twice, its sums rounded: a tie, and the first row wins it."""
    half = wide_range((bn, 5 * bk))
    scores = torch.cat([half, half])
    scores[bn:, : 2 * bk] += 2.0**-58
    same(run, scores, bn, bk, 0.4)


@pytest.mark.parametrize("columns, bk", [(2500, 2500), (2500, 1100), (2049, 3)])
def test_blocks_wider_than_a_piece_and_rows_wider_than_a_tile(run, columns, bk):
    same(run, wide_range((3, columns)), 1, bk, 0.5)


def test_memory_is_moved_once_and_in_whole_sectors(simulated):
    scores = torch.randn(32, 1024)
    simulated.call("select_block", scores, 16, 16, 0.5)
    name, sums = simulated.launches[0]
    assert name == "block_sums_kernel"
    assert sums["global.load.sectors"] * 32 == sums["global.load.bytes"] == scores.nbytes
    name, mask = simulated.launches[-1]
    assert name == "block_mask_kernel"
    assert mask["global.store.sectors"] * 32 == mask["global.store.bytes"] == scores.numel()
