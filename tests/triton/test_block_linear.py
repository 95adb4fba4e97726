"""``block_linear`` in Triton: the tolerance law over the op's cases, int8 values, counts."""

from __future__ import annotations

import pytest
import torch

from evoprune_kernels.formats import BlockWeight
from evoprune_kernels.ops.block_linear.cases import CASES
from tests.triton.linear import arguments, check

#: one number of tokens of every block shape: each costs a compilation of its own
SHAPES = [case for case in CASES if "70x90" not in case.name or case.name.startswith(("6x", "67x"))]


@pytest.mark.parametrize("case", SHAPES[::2], ids=lambda case: case.name)
def test_accurate(run, case):
    check(run, "block_linear", *case.args())


@pytest.mark.parametrize("case", SHAPES[1::2], ids=lambda case: case.name)
def test_accurate_in_the_interpreter(interpreter, case):
    check(interpreter.call, "block_linear", *case.args())


def blocks(rows, columns, edge, dtype=torch.float32):
    mask = torch.rand(rows // edge, columns // edge) < 0.5
    mask = mask.repeat_interleave(edge, 0).repeat_interleave(edge, 1)
    return BlockWeight.pack(torch.randn(rows, columns).to(dtype), edge, edge, mask=mask)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
def test_int8_values(run, dtype):
    torch.manual_seed(0)
    packed = blocks(32, 64, 16, dtype).quantize()
    check(run, "block_linear", torch.randn(5, 64).to(dtype), packed, torch.randn(32), "none")


def test_blocks_taller_than_a_tile_and_unaligned_views(run):
    torch.manual_seed(0)
    packed = blocks(128, 256, 128)
    x = torch.randn(20, 257)[:, 1:]
    once = check(run, "block_linear", x, packed, None, "none")
    assert torch.equal(once, run("block_linear", *arguments(x, packed, None, "none")))


def test_only_kept_blocks_are_read(simulated):
    torch.manual_seed(0)
    packed = blocks(64, 64, 16, torch.float16)
    x = torch.randn(16, 64).half()
    simulated.call("block_linear", *arguments(x, packed, None, "none"))
    columns = packed.col_idx.unique().numel() * 16
    indices = packed.row_ptr.nbytes + packed.col_idx.nbytes
    moved = packed.values.nbytes + 16 * columns * 2 + indices
    assert moved <= simulated.stats["global.load.footprint"] <= moved + 64  # whole sectors
    assert simulated.stats["global.store.sectors"] * 32 == 16 * 64 * 2


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("edge", [16, 64, 128])
def test_no_spills(no_spills, edge, dtype):
    packed = blocks(128, 128, edge, dtype)
    x = torch.zeros(40, 128, dtype=dtype)
    no_spills("block_linear", *arguments(x, packed, torch.zeros(128), "gelu"))
