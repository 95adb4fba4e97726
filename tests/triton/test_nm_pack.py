"""``nm_pack`` and ``nm_unpack`` in Triton: every bit that of the format."""

from __future__ import annotations

import pytest
import torch

from evoprune_kernels.ops.nm_pack.cases import CASES, random_weight
from evoprune_kernels.ops.nm_pack.reference import nm_pack_reference, nm_unpack_reference
from tests.ops.test_nm_pack import same_bits

PATTERNS = [(2, 4, 128), (3, 5, 80), (7, 32, 96)]


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_bits_are_those_of_the_reference(run, case):
    weight, mask, n, m = case.args()
    values, meta = run("nm_pack", weight, mask, n, m)
    expected = nm_pack_reference(weight, mask, n, m)
    assert same_bits(values, expected[0]) and same_bits(meta, expected[1])
    args = *expected, n, m, weight.shape[1]
    assert same_bits(run("nm_unpack", *args), nm_unpack_reference(*args))


def test_views_are_packed_as_what_they_show(run):
    weight, mask = random_weight(torch.Generator().manual_seed(1), 20, 41, 2, 4)
    weight, mask = weight[1:, 1:], torch.zeros_like(mask[1:, 1:]) | (mask & (weight != 0))[1:, 1:]
    mask &= torch.arange(40) % 4 < 2
    expected = nm_pack_reference(weight, mask, 2, 4)
    assert all(map(same_bits, run("nm_pack", weight, mask, 2, 4), expected))


@pytest.mark.parametrize("columns", [64, 62])
def test_a_group_that_keeps_too_many_is_named(run, columns):
    mask = torch.zeros(9, columns, dtype=torch.bool)
    mask[5, 60:63] = mask[7, :4] = True
    kept = min(columns, 63) - 60
    row, first, last, count = (5, 60, columns, 3) if kept == 3 else (7, 0, 4, 4)
    message = rf"weight\[{row}, {first}:{last}\] keeps {count} values, the pattern 2:4 allows 2"
    with pytest.raises(ValueError, match=message):
        run("nm_pack", torch.ones(9, columns), mask, 2, 4)


def test_the_memory_that_2_of_4_moves(simulated):
    mask = (torch.arange(256) % 4 < 2).expand(64, 256)
    weight = torch.randn(64, 256)
    values, meta = simulated.call("nm_pack", weight, mask, 2, 4)
    counts = simulated.stats
    assert counts["global.load.sectors"] * 32 == weight.nbytes + weight.numel()
    assert counts["global.store.bytes"] == values.nbytes + meta.nbytes
    simulated.call("nm_unpack", values, meta, 2, 4, 256)
    counts = simulated.stats
    assert counts["global.store.sectors"] * 32 == weight.nbytes
    assert counts["global.load.footprint"] == values.nbytes + meta.nbytes
