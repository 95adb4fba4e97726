"""``topk_channels`` in Triton: the indices of the reference."""

from __future__ import annotations

import pytest
import torch

from evoprune_kernels.ops.topk_channels.cases import CASES
from evoprune_kernels.ops.topk_channels.reference import topk_channels_reference


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
