"""``select_topk`` and ``select_topk_global`` in Triton: masks bitwise those of the reference."""

from __future__ import annotations

import pytest
import torch

from evoprune_kernels.ops.select_topk.cases import CASES
from evoprune_kernels.ops.select_topk.reference import select_topk_reference
from evoprune_kernels.ops.select_topk_global.cases import CASES as GLOBAL_CASES
from evoprune_kernels.ops.select_topk_global.reference import select_topk_global_reference


def same(run, scores, density):
    assert torch.equal(run("select_topk", scores, density), select_topk_reference(scores, density))


def same_global(run, scores, density):
    masks, expected = (
        run("select_topk_global", scores, density),
        select_topk_global_reference(scores, density),
    )
    assert all(torch.equal(a, b) for a, b in zip(masks, expected, strict=True))


def oracle(scores, keep):
    """In plain Python: by score, the lowest index first; NaN last."""
    values = scores.flatten().tolist()
    order = sorted(range(len(values)), key=lambda i: (values[i] != values[i], -values[i], i))
    mask = torch.zeros(len(values), dtype=torch.bool)
    mask[[i for i in order if values[i] == values[i]][:keep]] = True
    return mask.view(scores.shape)


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_masks_are_those_of_the_reference(run, case):
    scores, density = case.args()
    same(run, scores[:41] if case.name == "distinct" else scores, density)


@pytest.mark.parametrize("case", GLOBAL_CASES, ids=lambda case: case.name)
def test_global_masks_are_those_of_the_reference(run, case):
    scores, density = case.args()
    same_global(run, scores[:8], density)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_every_pass_decides(run, dtype):
    """Scores that differ in their lowest digit only, of both signs, with infinity, NaN and both zeros."""
    bits = torch.arange(-300, 300, dtype=torch.int16 if dtype.itemsize == 2 else torch.int32)
    scores = torch.cat(
        [bits.view(dtype), torch.tensor([float("nan"), -0.0, 0.0, float("-inf")]).to(dtype)]
    )
    scores = scores[torch.randperm(604, generator=torch.Generator().manual_seed(0))]
    known = int((~scores.isnan()).sum())
    for keep in (1, 150, known - 1):
        found = run("select_topk", scores, keep / 604)
        assert torch.equal(found, oracle(scores, keep))


def test_ties_across_tiles_programs_and_tensors(run):
    scores = torch.zeros(3 * 4096 + 5).copysign(torch.randn(3 * 4096 + 5))
    scores[5000] = 1.0
    same(run, scores, 0.5)
    same_global(run, [scores[:4100], scores[:7], torch.ones(3)], 0.7)


def test_a_program_of_several_tiles(simulated, monkeypatch):
    from evoprune_kernels.ops.select_topk import triton_impl

    monkeypatch.setattr(triton_impl, "MAX_PROGRAMS", 2)
    same(simulated.call, torch.randint(0, 3, (4 * 4096 + 9,)).float(), 0.4)


def test_views(run):
    same(run, torch.randn(41, 30).t(), 0.3)
    same(run, torch.randn(1001)[1:].half(), 0.3)


def test_nothing_is_launched_when_nothing_is_chosen(simulated):
    for density in (0.0, 1.0):
        assert (simulated.call("select_topk", torch.randn(70), density) == bool(density)).all()
        assert simulated.launches == []


def test_scores_are_read_in_whole_sectors(simulated):
    scores = torch.randn(2 * 4096)
    simulated.call("select_topk", scores, 0.5)
    names = [name for name, _ in simulated.launches]
    assert names == ["topk_count_kernel"] * 4 + ["topk_mask_kernel"]
    _, first = simulated.launches[0]
    assert first["global.load.bytes"] == scores.nbytes == first["global.load.sectors"] * 32
    _, mask = simulated.launches[-1]
    assert mask["global.store.sectors"] * 32 == mask["global.store.bytes"] == scores.numel()
