"""``bitmask_pack``, ``bitmask_unpack`` and ``bitmask_linear`` in Triton: bits of the format, and the tolerance law."""

from __future__ import annotations

import pytest
import torch

from evoprune_kernels.formats import BitmaskWeight
from evoprune_kernels.ops.bitmask_linear.cases import CASES
from evoprune_kernels.ops.bitmask_pack.cases import CASES as PACK_CASES
from evoprune_kernels.ops.bitmask_pack.reference import (
    bitmask_pack_reference,
    bitmask_unpack_reference,
)
from tests.ops.test_nm_pack import same_bits
from tests.triton.linear import arguments, check

#: one case of each kernel, tail, dtype and activation: each costs a compilation of its own
NAMES = (
    "1x40x96", "3x40x96", "8x40x96", "9x40x96", "33x40x96", "1x33x61", "24x33x61", "4x20x3",
    "8x1x1", "2x3x24x64", "24x64-", "0x16x32", "3x0x32", "3x16x0", "5x48x64",
    "7x18x72-0.3-float32-bias-float32-gelu_tanh", "1x33x100", "11x33x100", "70x33x128", "6x19x50",
)  # fmt: skip
CHOSEN = [case for case in CASES if case.name.startswith(NAMES)]


@pytest.mark.parametrize("case", PACK_CASES, ids=lambda case: case.name)
def test_pack_and_unpack(run, case):
    weight, mask = case.args()
    expected = bitmask_pack_reference(weight, mask)
    assert all(map(same_bits, run("bitmask_pack", weight, mask), expected))
    args = *expected, weight.shape[1]
    assert same_bits(run("bitmask_unpack", *args), bitmask_unpack_reference(*args))


def test_several_tiles_a_row_special_values_and_views(run):
    weight = torch.randn(4, 2101)[:, 1:]
    weight[0, :4] = torch.tensor([float("nan"), -0.0, 1e-42, float("-inf")])
    mask = torch.rand(4, 2101)[:, 1:] < 0.5
    mask[0, :4] = True
    expected = bitmask_pack_reference(weight, mask)
    assert all(map(same_bits, run("bitmask_pack", weight, mask), expected))
    args = *expected, 2100
    assert same_bits(run("bitmask_unpack", *args), bitmask_unpack_reference(*args))


@pytest.mark.parametrize("case", CHOSEN, ids=lambda case: case.name)
def test_linear_is_accurate(run, case):
    check(run, "bitmask_linear", *case.args())


def half(rows, columns, dtype=torch.float32):
    mask = torch.rand(rows, columns) < 0.5
    return BitmaskWeight.pack(torch.randn(rows, columns).to(dtype), mask=mask)


@pytest.mark.parametrize("tokens", [5, 20])
def test_int8_values_and_views(run, tokens):
    torch.manual_seed(0)
    packed = half(20, 300).quantize()
    x = torch.randn(tokens, 301)[:, 1:]
    once = check(run, "bitmask_linear", x, packed, torch.randn(20), "none")
    args = arguments(x, packed, None, "none")
    assert torch.equal(run("bitmask_linear", *args), run("bitmask_linear", *args))
    assert once.shape == (tokens, 20)


def test_few_tokens_read_the_weight_once(simulated):
    torch.manual_seed(0)
    packed = half(16, 512, torch.float16)
    simulated.call("bitmask_linear", *arguments(torch.randn(1, 512).half(), packed, None, "none"))
    stored = packed.values.nbytes + packed.bits.nbytes + packed.row_ptr.nbytes
    moved = simulated.stats["global.load.footprint"]
    assert stored + 512 * 2 <= moved + 64 and moved <= stored + 512 * 2 + 64  # whole sectors
