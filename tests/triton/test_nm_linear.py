"""``nm_linear`` in Triton: the tolerance law over the op's cases, int8 values, gathers, counts."""

from __future__ import annotations

import pytest
import torch

from evoprune_kernels.formats import NMWeight
from evoprune_kernels.ops.nm_linear.cases import CASES
from tests.triton.linear import arguments, check

#: one case of each kernel, pattern class, tail, dtype and activation: each costs a compilation of its own
NAMES = (
    "1x64x256", "3x33x61", "8x1x1", "13x40x130", "4x20x3", "2x3x24x64", "24x64-", "0x16x32",
    "3x0x32-2:4-", "3x16x0-2:4-", "7x18x72-2:4-float32-bias-float32-silu", "1x21x90-1:4",
    "40x21x90-3:4", "6x21x90-1:1", "9x21x90-3:7", "1x21x90-5:17", "9x21x90-7:32", "1x21x90-32:32",
    "1x35x101", "13x35x101", "4x20x90", "7x33x100", "1x33x100", "11x33x100", "70x33x128", "6x19x50",
)  # fmt: skip
CHOSEN = [case for case in CASES if case.name.startswith(NAMES)]


def two_of_four(rows, columns, dtype=torch.float32):
    mask = (torch.arange(columns) % 4 > 1).expand(rows, columns)
    return NMWeight.pack(torch.randn(rows, columns).to(dtype), 2, 4, mask=mask)


@pytest.mark.parametrize("case", CHOSEN, ids=lambda case: case.name)
def test_accurate(run, case):
    check(run, "nm_linear", *case.args())


@pytest.mark.parametrize("tokens", [3, 20])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
def test_int8_values(run, tokens, dtype):
    torch.manual_seed(0)
    packed = two_of_four(24, 72, dtype).quantize()
    check(run, "nm_linear", torch.randn(tokens, 72).to(dtype), packed, torch.randn(24), "none")


def test_unaligned_views_and_twice_the_same_bits(run):
    torch.manual_seed(0)
    packed = two_of_four(20, 64)
    x = torch.randn(12, 65)[:, 1:]
    once = check(run, "nm_linear", x, packed, None, "none")
    assert torch.equal(once, run("nm_linear", *arguments(x, packed, None, "none")))


def test_few_tokens_read_the_weight_once(simulated):
    torch.manual_seed(0)
    packed = two_of_four(16, 512, torch.float16)
    simulated.call("nm_linear", *arguments(torch.randn(1, 512).half(), packed, None, "none"))
    stored = packed.values.nbytes + packed.meta.nbytes
    assert simulated.stats["global.load.footprint"] == stored + 512 * 2
    assert len(simulated.launches) == 1
