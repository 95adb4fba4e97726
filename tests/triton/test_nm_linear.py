"""``nm_linear`` in Triton: the tolerance law over the op's cases, int8 values, gathers, counts."""

from __future__ import annotations

import pytest
import torch

from evoprune_kernels.formats import NMWeight
from evoprune_kernels.ops.nm_linear.cases import CASES
from tests.triton.linear import arguments, check

#: some of the patterns: each costs a compilation of its own
PATTERNS = [
    case
    for case in CASES
    if case.name.split("-")[0] in ("1x21x90", "9x21x90")
    and case.name.split("-")[1] in ("1:4", "4:4", "3:7", "5:17", "7:32", "32:32")
]
OTHERS = [c for c in CASES if "21x90" not in c.name and c not in PATTERNS and "70000" not in c.name]


def two_of_four(rows, columns, dtype=torch.float32):
    mask = (torch.arange(columns) % 4 > 1).expand(rows, columns)
    return NMWeight.pack(torch.randn(rows, columns).to(dtype), 2, 4, mask=mask)


@pytest.mark.parametrize("case", [*OTHERS[::2], *PATTERNS[::2]], ids=lambda case: case.name)
def test_accurate(run, case):
    check(run, "nm_linear", *case.args())


@pytest.mark.parametrize("case", [*OTHERS[1::2], *PATTERNS[1::2]], ids=lambda case: case.name)
def test_accurate_in_the_interpreter(interpreter, case):
    check(interpreter.call, "nm_linear", *case.args())


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
