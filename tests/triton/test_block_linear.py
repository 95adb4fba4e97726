"""``block_linear`` and its backward products in Triton: the tolerance law, int8 values, tiles, counts."""

from __future__ import annotations

import pytest
import torch

from evoprune_kernels.formats import BlockWeight
from evoprune_kernels.formats.block import blocks_of, rows_of
from evoprune_kernels.ops import OPS
from evoprune_kernels.ops.block_linear.backward import transpose_index
from evoprune_kernels.ops.block_linear.cases import CASES
from evoprune_kernels.ops.block_linear.tiles import LARGEST, Tile, choose_tile, largest_tile
from tests.tolerance import assert_accurate
from tests.triton.linear import arguments, check
from tests.triton.registered import on_cpu

#: one case of each size of tokens, block shape, dtype, tail and activation: each costs a compilation of its own
NAMES = (
    "1x64x96", "8x64x96", "23x64x96", "70x64x96", "1x33x61", "13x33x61", "4x20x3", "8x1x1",
    "2x3x32x64", "32x64-", "0x16", "3x0x32", "3x16x0", "5x48", "9x48",
    "7x40x72-16x16-0.5-float32-bias-float32-silu", "17x70x90", "1x33x100", "11x33x100", "70x33x128",
    "6x19x50", "1x19x50", "6x32x48",
)  # fmt: skip
SHAPES = [case for case in CASES if case.name.startswith(NAMES)]


@pytest.mark.parametrize("case", SHAPES, ids=lambda case: case.name)
def test_accurate(run, case):
    check(run, "block_linear", *case.args())


def blocks(rows, columns, edge, dtype=torch.float32):
    bn, bk = edge if isinstance(edge, tuple) else (edge, edge)
    mask = torch.rand(-(-rows // bn), -(-columns // bk)) < 0.5
    mask = mask.repeat_interleave(bn, 0).repeat_interleave(bk, 1)[:rows, :columns]
    return BlockWeight.pack(torch.randn(rows, columns).to(dtype), bn, bk, mask=mask)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
def test_int8_values(run, dtype):
    torch.manual_seed(0)
    packed = blocks(32, 64, 16, dtype).quantize()
    check(run, "block_linear", torch.randn(5, 64).to(dtype), packed, torch.randn(32), "none")


@pytest.mark.parametrize("edge", [128, (16, 200)])
def test_blocks_larger_than_a_tile_and_unaligned_views(run, edge):
    torch.manual_seed(0)
    packed = blocks(128, 600, edge)
    x = torch.randn(20, 601)[:, 1:]
    once = check(run, "block_linear", x, packed, None, "none")
    assert torch.equal(once, run("block_linear", *arguments(x, packed, None, "none")))


# ---- backward ----
def dx_arguments(grad, packed):
    bn, bk = packed.pattern.arguments()
    index = transpose_index(packed.row_ptr, packed.col_idx, -(-packed.shape[1] // bk))
    return grad, packed.values, *index, *packed.shape, bn, bk


def dw_arguments(grad, x, packed):
    rows = rows_of(packed.row_ptr, packed.values.shape[0]).int()
    return grad, x, rows, packed.col_idx, *packed.pattern.arguments()


def check_dw(dw, grad, x, packed):
    """Against the dense product in fp64; what lies beyond the weight is 0."""
    where = rows_of(packed.row_ptr, dw.shape[0]), packed.col_idx.long()
    truth, same = (
        blocks_of(g.flatten(0, -2).t() @ v.flatten(0, -2), *packed.pattern.arguments())[where]
        for g, v in ((grad.double(), x.double()), (grad, x))
    )
    assert_accurate(dw, truth, same)
    BlockWeight(dw, packed.row_ptr, packed.col_idx, packed.shape).validate()


F32, F16, BF16 = torch.float32, torch.float16, torch.bfloat16
BACKWARD = [
    # tokens, (N, K), (bn, bk), dtype
    *[((t,), (48, 64), (16, 16), F32) for t in (1, 33)],
    ((70,), (64, 128), (64, 64), F16),
    ((129,), (70, 90), (16, 32), BF16),
    *[((17,), (37, 45), block, F32) for block in ((16, 16), (48, 5), (3, 7), (1, 16))],
    ((5,), (37, 45), (16, 16), F16),
    ((9,), (150, 140), (128, 128), F32),
    ((2, 3), (32, 48), (8, 8), BF16),
    ((0,), (32, 48), (16, 16), F32),
    ((), (32, 48), (16, 16), F32),
    ((3,), (0, 32), (16, 16), F32),
    ((3,), (32, 0), (16, 16), F32),
]


@pytest.mark.parametrize("tokens, shape, edge, dtype", BACKWARD, ids=str)
def test_backward(run, tokens, shape, edge, dtype):
    torch.manual_seed(0)
    packed = blocks(*shape, edge, dtype)
    x, grad = (torch.randn(*tokens, size).to(dtype) for size in shape[::-1])
    dx = run("block_linear_dx", *dx_arguments(grad, packed))
    weight = packed.unpack()
    assert_accurate(dx, grad.double() @ weight.double(), grad @ weight)
    if tokens:
        check_dw(run("block_linear_dw", *dw_arguments(grad, x, packed)), grad, x, packed)


def test_backward_reads_views_and_gives_the_same_bits_twice(run):
    torch.manual_seed(0)
    packed = blocks(40, 48, (16, 8))
    grad, x = torch.randn(40, 21).t(), torch.randn(21, 49)[:, 1:]
    for op, args in (
        ("block_linear_dx", dx_arguments(grad, packed)),
        ("block_linear_dw", dw_arguments(grad, x, packed)),
    ):
        first = run(op, *args)
        plain = [a.contiguous() if isinstance(a, torch.Tensor) else a for a in args]
        assert torch.equal(first, run(op, *plain))


def test_a_weight_without_blocks(run):
    packed = BlockWeight.pack(torch.zeros(32, 48), 16, 16)
    assert packed.values.shape[0] == 0
    assert not run("block_linear_dx", *dx_arguments(torch.ones(3, 32), packed)).any()
    dw = run("block_linear_dw", *dw_arguments(torch.ones(3, 32), torch.ones(3, 48), packed))
    assert dw.shape == (0, 16, 16)


def test_autograd_goes_through_the_kernels(simulated):
    torch.manual_seed(0)
    packed, x, bias = blocks(32, 48, 16), torch.randn(5, 48), torch.randn(32)
    leaves = [t.requires_grad_() for t in (x, packed.values, bias)]
    tail = (packed.row_ptr, packed.col_idx, bias, 32, 48, 16, 16, "gelu", "canonical")
    grad = torch.randn(5, 32)
    expected = torch.autograd.grad(OPS["block_linear"](x, packed.values, *tail), leaves, grad)
    backward = "evoprune::block_linear_dx", "evoprune::block_linear_dw"
    with on_cpu(simulated, "evoprune_triton::block_linear", *backward) as launched:
        y = OPS["block_linear"].triton[0](x, packed.values, *tail)
        found = torch.autograd.grad(y, leaves, grad)
    for mine, other in zip(found, expected, strict=True):
        torch.testing.assert_close(mine, other)
    assert launched.count("block_linear_dw_kernel") == 1
    assert launched.count("block_product_kernel") >= 2


# ---- what is launched ----
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
    grad = torch.randn(16, 64).half()
    simulated.call("block_linear_dw", *dw_arguments(grad, x, packed))
    stats = simulated.stats
    assert stats["global.store.sectors"] * 32 == stats["global.store.bytes"] == packed.values.nbytes


@pytest.mark.parametrize("arch", [*LARGEST, 75, 86, 103])
@pytest.mark.parametrize("operand_bytes", [2, 4])
def test_the_tiles_keep_to_the_budget_that_the_table_states(arch, operand_bytes):
    shared = 96 if 90 <= arch < 120 else 48
    assert largest_tile(arch, operand_bytes) == choose_tile(arch, operand_bytes, *[1 << 20] * 3)
    for size in (1, 15, 16, 17, 64, 65, 128, 1000):
        tile = choose_tile(arch, operand_bytes, size, size, size)
        assert tile.rows * tile.columns <= 64 * 32 * tile.warps
        assert tile.stages * (tile.rows + tile.columns) * tile.depth * operand_bytes <= shared << 10
        assert min(tile.rows, tile.columns, tile.depth) >= 16
    assert choose_tile(arch, 4, 1, 1, 1) == Tile(16, 16, 16, 4, 2)
