"""``nm_linear`` on the tensor cores: values against fp64, every tile and way of loading, and what a stage costs."""

from __future__ import annotations

import contextlib
import ctypes
import dataclasses
from collections import Counter

import pytest
import torch
from torch import Tensor

from evoprune_kernels import ops
from evoprune_kernels.formats import NMWeight
from evoprune_kernels.ops._linear import linear_dense
from evoprune_kernels.ops.nm_pack.cases import random_weight
from tests.tolerance import assert_accurate

F16, BF16, F32 = torch.float16, torch.bfloat16, torch.float32
MMA = "inst.mma.sp::ordered_metadata.sync.aligned.m16n8k32.row.col.f32"
MANY = 108  # processors of an A100


def make(tokens, rows, columns, dtype=F16, bias=F32, seed=0):
    """``(x, packed, bias)``."""
    generator = torch.Generator().manual_seed(seed)
    weight, mask = random_weight(generator, rows, columns, 2, 4)
    packed = NMWeight.pack(weight.to(dtype), 2, 4, mask=mask)
    x = torch.randn(tokens, columns, generator=generator).to(dtype)
    b = None if bias is None else torch.randn(rows, generator=generator).to(bias)
    return x, packed, b


def call(gpu, x, packed, bias=None, activation="none"):
    tensors = ops.nm_prepare_cuda(packed)
    numbers = (*packed.shape, *packed.pattern.arguments(), activation, "cuda", None)
    return gpu.call("nm_linear", x, *tensors, bias, *numbers)


def check(gpu, x, packed, bias=None, activation="none") -> Tensor:
    y = call(gpu, x, packed, bias, activation)
    weight = packed.unpack()
    wide = linear_dense(
        x.double(), weight.double(), None if bias is None else bias.double(), activation
    )
    assert_accurate(y, wide, linear_dense(x, weight, bias, activation))
    return y


def simulated(gpu) -> bool:
    return hasattr(gpu, "library")


@contextlib.contextmanager
def processors(gpu, count):
    """Act as a device with so many processors: what the choice of tile and split depends on."""
    if not simulated(gpu):
        yield
        return
    before = gpu.attributes[16]
    try:
        gpu.attributes[16] = count
        yield
    finally:
        gpu.attributes[16] = before


WHOLE = {0: (128, 128, 192), 1: (64, 128, 256), 2: (32, 64, 384)}  # tile: tokens, rows, columns


@pytest.mark.parametrize("dtype", [F16, BF16], ids=str)
@pytest.mark.parametrize("tile", WHOLE)
def test_whole_tiles(gpu, tile, dtype):
    with processors(gpu, 1):
        check(gpu, *make(*WHOLE[tile], dtype))
    if simulated(gpu):
        [(name, _)] = gpu.launches
        assert f"Li{tile}E" in name


@pytest.mark.parametrize(
    "shape, dtype, bias, activation, count",
    [
        ((33, 70, 130), BF16, BF16, "silu", MANY),  # rows of x that do not start at 16 bytes
        ((70, 33, 101), F16, F16, "gelu", MANY),  # odd N and K
        ((150, 200, 72), F16, None, "relu", 1),  # two tiles of tokens and of rows, tails of all
        ((17, 1, 1), BF16, F32, "none", MANY),
        ((20, 24, 0), F16, F32, "relu", MANY),
        ((100, 72, 200), BF16, F32, "gelu_tanh", 1),
        ((130, 130, 65), F16, F32, "none", 1),
        ((40, 1100, 9), BF16, None, "none", MANY),  # more tiles of rows than a group of blocks has
    ],
    ids=str,
)
def test_tails(gpu, shape, dtype, bias, activation, count):
    x, packed, b = make(*shape, dtype, bias)
    with processors(gpu, count):
        check(gpu, x, packed, b, activation)


@pytest.mark.parametrize("rows, columns", [(64, 1024), (65, 1030)])
def test_split_sums_are_added_in_one_order(gpu, rows, columns):
    args = make(20, rows, columns, BF16)
    y = check(gpu, *args, "gelu")
    assert torch.equal(y, call(gpu, *args, "gelu"))
    if simulated(gpu):
        assert [("add_parts" in name) for name, _ in gpu.launches] == [False, True]


def test_unaligned_memory(gpu):
    x, packed, bias = make(21, 72, 136)
    moved = torch.cat([x.new_zeros(1), x.flatten()])[1:].view_as(x)
    b = torch.cat([bias.new_zeros(1), bias])[1:]
    assert moved.data_ptr() % 4 == 2 + x.data_ptr() % 4
    assert torch.equal(check(gpu, moved, packed, b), call(gpu, x, packed, bias))


def test_x_of_any_shape(gpu):
    x, packed, bias = make(40, 24, 64)
    y = call(gpu, x, packed, bias)
    assert torch.equal(call(gpu, x.view(2, 20, 64), packed, bias), y.view(2, 20, 24))
    assert torch.equal(call(gpu, x.t().contiguous().t(), packed, bias), y)
    assert call(gpu, x[:0], packed, bias).shape == (0, 24)


def test_only_stored_places_take_part(gpu):
    """NaN and infinity in kept values reach their row alone; in x, the rows that keep the column alone."""
    x, packed, _ = make(18, 66, 70, bias=None)
    expected = call(gpu, x, packed)
    values = packed.values.clone()
    values[3, 5], values[40, 0], values[65, 7] = torch.nan, torch.inf, -0.0
    damaged = dataclasses.replace(packed, values=values)
    y = call(gpu, x, damaged)
    untouched = torch.ones(66, dtype=torch.bool)
    untouched[[3, 40, 65]] = False
    assert torch.equal(y[:, untouched], expected[:, untouched])
    assert y[:, 3].isnan().all() and not y[:, 40].isfinite().any()

    stored = dataclasses.replace(packed, values=torch.ones_like(values)).unpack()
    x[7, 13] = torch.inf
    finite = call(gpu, x, packed).isfinite()
    assert torch.equal(~finite[7], stored[:, 13] != 0)
    assert finite[:7].all() and finite[8:].all()


@pytest.mark.parametrize(
    "change, message",
    [
        ({"x": torch.zeros(20, 60, dtype=F16)}, r"x\.size\(-1\) = 64, got 60"),
        ({"x": torch.zeros(20, 64, dtype=BF16)}, "values has dtype Half, x another"),
        ({"x": torch.zeros(20, 64, dtype=torch.float64)}, "x has dtype Double, expected Float"),
        ({"values": torch.zeros(64, 30, dtype=F16)}, r"values\.size\(1\) = 32, got 30"),
        ({"meta": torch.zeros(1, 1, 32, 3, dtype=torch.int32)}, "meta of 128 words, got 96"),
        ({"bias": torch.zeros(63)}, r"bias\.size\(0\) = 64, got 63"),
        ({"n": 1}, "takes the pattern 2:4, got 1:4"),
        ({"layout": "cpu"}, "layout cuda, got cpu"),
        ({"activation": "tanh"}, "got tanh"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_bad_input_launches_nothing(gpu, change, message):
    x, packed, bias = make(20, 64, 64)
    values, meta = ops.nm_prepare_cuda(packed)
    args = {
        "x": x, "values": values, "meta": meta, "bias": bias, "out_features": 64, "in_features": 64, "n": 2, "m": 4,
        "shared": 1, "activation": "none", "layout": "cuda", "scale": None,
    }  # fmt: skip
    with pytest.raises(RuntimeError, match=message):
        gpu.call("nm_linear", *(args | change).values())
    assert gpu.launches == []


# ---- what it costs ----
def counts(gpu, tokens, rows, columns):
    with processors(gpu, 1):
        call(gpu, *make(tokens, rows, columns))
    [(_, stats)] = gpu.launches
    return stats


def mma(stats) -> int:
    return sum(count for name, count in stats.items() if name.startswith(MMA))


def total(stats, *names) -> int:
    return sum(stats[name] for name in names)


WAVEFRONTS = [f"shared.{kind}.wavefronts" for kind in ("load", "store", "copy")]
IDEAL = [f"shared.{kind}.ideal" for kind in ("load", "store", "copy")]
SECTORS = [f"global.{kind}.sectors" for kind in ("load", "store")]
BYTES = [f"global.{kind}.bytes" for kind in ("load", "store")]


@pytest.mark.parametrize("tile", WHOLE)
def test_every_byte_is_used_and_no_banks_collide(gpu, tile):
    tokens, rows, columns = WHOLE[tile]
    with processors(gpu, 1):
        call(gpu, *make(tokens, rows, columns, bias=None))
    stats = gpu.stats
    assert total(stats, *WAVEFRONTS) == total(stats, *IDEAL) > 0
    assert 32 * total(stats, *SECTORS) == total(stats, *BYTES) > 0
    once = columns * rows + rows * columns // 8 + 2 * tokens * columns  # values, metadata, x
    assert stats["global.load.footprint"] == stats["global.load.bytes"] == once


def test_what_a_stage_costs(gpu):
    """The 128 x 128 tile: the difference between two K, so without the beginning and the end of a block."""
    short, long = counts(gpu, 128, 128, 256), counts(gpu, 128, 128, 512)
    stage = Counter(long)
    stage.subtract(short)
    steady = stage["inst"] / mma(stage)
    assert steady <= 2.3  # warp instructions an mma.sp
    # an mma.sp has to read 1.5 (64 x 64 a warp) + 1/16 of metadata, and the copies write 0.78
    assert stage["shared.load.wavefronts"] / mma(stage) == 1.5625
    assert stage["shared.copy.wavefronts"] / mma(stage) == 0.78125
    assert long["inst"] - steady * mma(long) <= 3700  # all four warps: beginning and end


# ---- tile and split ----
def plan(gpu, tokens, rows, columns, count=MANY, value_bytes=2):
    """``(tile, row tiles, token tiles, stages, splits, stages of a split)``."""
    if not simulated(gpu):
        pytest.skip("the plan is asked of the simulated library")
    out = (ctypes.c_int64 * 6)()
    numbers = [ctypes.c_int64(n) for n in (tokens, rows, columns)]
    gpu.library.evoprune_sim_nm_plan(*numbers, value_bytes, count, out)
    return tuple(out)


@pytest.mark.parametrize(
    "problem, tile, splits",
    [
        ((32, 4096, 4096), 2, 3),  # few blocks, long sums
        ((32, 11008, 4096), 2, 1),
        ((64, 4096, 4096), 1, 3),
        ((128, 4096, 4096), 0, 3),
        ((256, 384, 384), 2, 1),  # short sums: a second kernel costs more than it gives
        ((2048, 4096, 4096), 0, 1),
        ((4096, 4096, 11008), 0, 1),
    ],
)
def test_the_tile_fits_the_problem(gpu, problem, tile, splits):
    chosen = plan(gpu, *problem)
    assert (chosen[0], chosen[4]) == (tile, splits)


def test_every_plan_covers_the_problem_once(gpu):
    shapes = [(128, 128, 64), (128, 64, 64), (64, 32, 128)]
    generator = torch.Generator().manual_seed(0)
    for _ in range(300):
        tokens, rows, columns = (
            int(2 ** (torch.rand((), generator=generator) * 13)) for _ in range(3)
        )
        count = int(torch.randint(1, 200, (), generator=generator))
        tile, row_tiles, token_tiles, stages, splits, of_split = plan(
            gpu, tokens, rows, columns, count
        )
        tile_rows, tile_tokens, tile_columns = shapes[tile]
        assert row_tiles == -(-rows // tile_rows) and token_tiles == -(-tokens // tile_tokens)
        assert stages == -(-(-(-columns // 64) * 64) // tile_columns)
        assert (splits - 1) * of_split < stages <= splits * of_split
