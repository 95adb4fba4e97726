"""``select_nm`` in Triton: masks bitwise those of the reference."""

from __future__ import annotations

import pytest
import torch

from evoprune_kernels.ops.select_nm.cases import CASES
from evoprune_kernels.ops.select_nm.reference import select_nm_reference


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_masks_are_those_of_the_reference(run, case):
    args = case.args()
    assert torch.equal(run("select_nm", *args), select_nm_reference(*args))


@pytest.mark.parametrize("shape", [(37, 64), (37, 63)])
def test_views_that_are_neither_aligned_nor_contiguous(run, shape):
    scores = torch.randint(0, 4, (shape[0], shape[1] + 1)).half()[:, 1:]
    assert torch.equal(run("select_nm", scores, 2, 4), select_nm_reference(scores, 2, 4))
    scores = torch.randn(shape[0] * shape[1] + 1)[1:].view(shape)
    assert torch.equal(run("select_nm", scores, 2, 4), select_nm_reference(scores, 2, 4))


def test_signs_of_zero_tie_and_several_programs_share_a_row(run):
    scores = torch.zeros(3, 1100).copysign(torch.randn(3, 1100))
    assert torch.equal(run("select_nm", scores, 2, 4), select_nm_reference(scores, 2, 4))


def test_every_byte_is_moved_once(simulated):
    simulated.call("select_nm", torch.randn(64, 256), 2, 4)
    (_, counts), bytes_in, bytes_out = simulated.launches[0], 64 * 256 * 4, 64 * 256
    assert counts["global.load.bytes"] == bytes_in == counts["global.load.sectors"] * 32
    assert counts["global.store.bytes"] == bytes_out == counts["global.store.sectors"] * 32
    assert counts["global.load.requests"] == bytes_in // (32 * 16), "16 bytes a lane"
