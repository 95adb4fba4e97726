"""One and two tokens read several tiles of rows side by side: strips of any lengths, whatever the threads."""

from __future__ import annotations

import pytest
import torch
from torch.nn import functional as F

from evoprune_kernels import formats, ops
from tests.tolerance import assert_accurate

ROWS, COLUMNS = 16 * 9 + 5, 1100


def uneven(pattern: str) -> torch.Tensor:
    """A weight whose first rows keep much and whose last rows keep little; one tile keeps nothing."""
    weight = torch.randn(ROWS, COLUMNS)
    if pattern.startswith("block"):
        bn, bk = map(int, pattern.removeprefix("block:").split("x"))
        grid = torch.rand(-(-ROWS // bn), -(-COLUMNS // bk))
        keep = grid < torch.linspace(1.0, 0.05, grid.shape[0])[:, None]
        mask = keep.repeat_interleave(bn, 0).repeat_interleave(bk, 1)[:ROWS, :COLUMNS].clone()
        mask[64:80] = False
        return weight * mask
    n, m, shared = formats.parse_pattern(pattern).arguments()
    return weight * ops.select_nm(weight.abs(), n, m, shared=shared)


@pytest.mark.parametrize("stored", ["float32", "bfloat16", "int8"])
@pytest.mark.parametrize("tokens", [1, 2, 3])
@pytest.mark.parametrize(
    "pattern",
    [
        "block:16x16",
        "block:64x64",
        "block:16x1",
        "block:32x24",
        "block:16x96",
        "2:4v16",
        "2:4",
        "3:8",
    ],
)
def test_every_tile_is_right_and_threads_change_nothing(pattern, tokens, stored, isa):
    packed = formats.pack(uneven(pattern), pattern)
    if stored != "float32":
        packed = packed.quantize() if stored == "int8" else packed.to(torch.bfloat16)
    x, bias, weight = torch.randn(tokens, COLUMNS), torch.randn(ROWS), packed.unpack().float()
    results = []
    before = torch.get_num_threads()
    for threads in (1, 2):
        torch.set_num_threads(threads)
        results.append(ops.linear(x, packed, bias, "silu"))
    torch.set_num_threads(before)
    assert torch.equal(*results)
    truth = F.silu(F.linear(x.double(), weight.double(), bias.double()))
    assert_accurate(results[0], truth, F.silu(F.linear(x, weight, bias)))
