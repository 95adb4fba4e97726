"""``nm_w8a8_linear`` on the tensor cores: the bits of the reference, and what a stage costs."""

from __future__ import annotations

from collections import Counter

import pytest
import torch

from evoprune_kernels import ops
from evoprune_kernels.formats import NMWeight
from evoprune_kernels.ops.nm_pack.cases import random_weight
from evoprune_kernels.ops.nm_w8a8_linear.cases import CASES
from evoprune_kernels.ops.nm_w8a8_linear.reference import nm_w8a8_linear_reference
from tests.tolerance import assert_accurate

MMA = "inst.mma.sp::ordered_metadata.sync.aligned.m16n8k64.row.col.satfinite.s32.s8.s8.s32"


def arguments(x, packed, bias=None, activation="none"):
    return x, *ops.nm_prepare_cuda(packed), bias, *packed.shape, activation, packed.scale


def weight_of(rows, columns=64) -> NMWeight:
    weight, mask = random_weight(torch.Generator().manual_seed(0), rows, columns, 2, 4)
    return NMWeight.pack(weight, 2, 4, mask=mask).quantize()


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_the_bits_are_those_of_the_reference(gpu, case):
    args = arguments(*case.args())
    y, expected = gpu.call("nm_w8a8_linear", *args), nm_w8a8_linear_reference(*args)
    if case.args()[3] in ("none", "relu"):
        assert torch.equal(y, expected)
    else:
        assert_accurate(y, expected.double(), expected)


def test_tokens_without_a_scale(gpu):
    """Zeros, too small, NaN, infinity and a tie of rounding."""
    case = next(case for case in CASES if case.name.startswith("5x130x64"))
    x, packed, bias, _ = case.args()
    x[0], x[1], x[2, 3], x[3, 4] = 0, 1e-38, torch.nan, -torch.inf
    x[4] = torch.arange(64) / 2 - 16
    x[4, 0] = 127
    args = arguments(x, packed, bias)
    y = gpu.call("nm_w8a8_linear", *args)
    assert torch.equal(y[:2], bias.float().expand(2, -1)) and y[2:4].isnan().all()
    assert torch.equal(y.nan_to_num(), nm_w8a8_linear_reference(*args).nan_to_num())


def test_unaligned_memory(gpu):
    x, packed, bias, _ = CASES[0].args()
    x = x[:5]
    moved = torch.cat([x.new_zeros(1), x.flatten()])[1:].view_as(x)
    expected = gpu.call("nm_w8a8_linear", *arguments(x, packed, bias))
    assert torch.equal(gpu.call("nm_w8a8_linear", *arguments(moved, packed, bias)), expected)


@pytest.mark.parametrize(
    "at, value, message",
    [
        (0, torch.zeros(3, 60), r"x\.size\(-1\) = 64, got 60"),
        (0, torch.zeros(3, 64, dtype=torch.float64), "x has dtype Double, expected Float"),
        (1, torch.zeros(64, 32), "values has dtype Float, expected Char"),
        (2, torch.zeros(1, 1, 32, 3, dtype=torch.int32), "meta of 128 words, got 96"),
        (7, torch.zeros(65), r"scale\.size\(0\) = 64, got 65"),
        (6, "tanh", "got tanh"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_bad_input_launches_nothing(gpu, at, value, message):
    args = list(arguments(torch.zeros(3, 64), weight_of(64)))
    args[at] = value
    with pytest.raises(RuntimeError, match=message):
        gpu.call("nm_w8a8_linear", *args)
    assert gpu.launches == []


def counts(gpu, columns):
    """Of the product alone, one block of 128 x 128."""
    x = torch.randn(128, columns).half()
    gpu.call("nm_w8a8_linear", *arguments(x, weight_of(128, columns)))
    [(first, quantized), (second, stats)] = gpu.launches
    assert "quantize" in first and "nm_linear" in second
    assert 32 * quantized["global.load.sectors"] == quantized["global.load.bytes"]
    return stats


def test_what_a_stage_costs(gpu):
    before = gpu.attributes[16]
    gpu.attributes[16] = 1
    try:
        short, long = counts(gpu, 256), counts(gpu, 768)
    finally:
        gpu.attributes[16] = before
    for kind in ("load", "store", "copy"):
        assert long[f"shared.{kind}.wavefronts"] == long[f"shared.{kind}.ideal"]
    stage = Counter(long)
    stage.subtract(short)
    mma = stage[MMA]
    assert 32 * stage["global.load.sectors"] == stage["global.load.bytes"]
    assert stage["inst"] / mma <= 2.3
    assert stage["shared.load.wavefronts"] / mma == 1.625
    assert long["inst"] - stage["inst"] / mma * long[MMA] <= 5600
