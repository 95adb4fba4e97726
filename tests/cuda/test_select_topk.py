"""``select_topk`` and ``select_topk_global`` on the simulated GPU: masks bitwise those of the references."""

from __future__ import annotations

import pytest
import torch

from evoprune_kernels.ops.select_topk.cases import CASES
from evoprune_kernels.ops.select_topk.reference import select_topk_reference
from evoprune_kernels.ops.select_topk_global.cases import CASES as GLOBAL_CASES
from evoprune_kernels.ops.select_topk_global.reference import select_topk_global_reference

PROCESSORS = 16  # cudaDevAttrMultiProcessorCount


@pytest.fixture
def small(gpu):
    """A device of one processor: a block owns several tiles."""
    kept = gpu.attributes[PROCESSORS]
    gpu.attributes[PROCESSORS] = 1
    yield gpu
    gpu.attributes[PROCESSORS] = kept


def same(gpu, scores, density):
    """The mask of the kernels; it must be that of the reference."""
    mask = gpu.call("select_topk", scores, density)
    assert torch.equal(mask, select_topk_reference(scores, density))
    return mask


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_masks_are_those_of_the_reference(gpu, case):
    same(gpu, *case.args())


@pytest.mark.parametrize("case", GLOBAL_CASES, ids=lambda case: case.name)
def test_global_masks_are_those_of_the_reference(gpu, case):
    scores, density = case.args()
    masks = gpu.call("select_topk_global", scores, density)
    for mask, expected in zip(masks, select_topk_global_reference(scores, density), strict=True):
        assert torch.equal(mask, expected)
        assert mask.shape == expected.shape


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
@pytest.mark.parametrize("keep", [1, 2, 5, 9, 10, 11])
def test_special_values(gpu, dtype, keep):
    nan, inf = float("nan"), float("inf")
    tiny = torch.finfo(dtype).smallest_normal / 4
    scores = torch.tensor([nan, -inf, tiny, -0.0, nan, 0.0, -tiny, inf, -1.0, 1.0, inf, nan])
    same(gpu, scores.to(dtype), keep / 12)


@pytest.mark.parametrize("density", [1e-4, 0.3, 0.9999])
def test_ties_are_ranked_across_tiles_and_blocks(small, density):
    same(small, torch.randint(0, 2, (29_001,)).float(), density)


def test_16_bit_ties_are_ranked_across_tiles_and_blocks(small):
    same(small, torch.randint(0, 2, (57_001,)).bfloat16(), 0.3)


def test_two_runs_give_the_same_mask(gpu):
    scores = torch.randint(0, 2, (3, 5000)).half()
    assert torch.equal(same(gpu, scores, 0.4), same(gpu, scores, 0.4))


@pytest.mark.parametrize("offset", [1, 2, 3, 4])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
def test_views_that_are_not_aligned(gpu, offset, dtype):
    scores = torch.randn(9000).to(dtype)[offset:]
    same(gpu, scores, 0.4)


def test_non_contiguous(gpu):
    same(gpu, torch.randn(40, 56).t(), 0.3)


def test_a_list_is_ranked_as_one(gpu):
    scores = [torch.randn(40, 33), torch.randn(5000), torch.randn(1)]
    flat = torch.cat([s.reshape(-1) for s in scores])
    masks = gpu.call("select_topk_global", scores, 0.37)
    found = torch.cat([m.reshape(-1) for m in masks])
    assert torch.equal(found, select_topk_reference(flat, 0.37))


def test_aligned_scores_are_read_in_whole_sectors(gpu):
    scores = torch.randn(4 * 4096)  # four tiles, a block each
    gpu.call("select_topk", scores, 0.5)
    kernels = [name for name, _ in gpu.launches]
    assert len(kernels) == 4
    assert all("radix_count_kernel" in name for name in kernels[:3])
    _, mask = gpu.launches[-1]
    own = 4 * 256 * (4 + 8)  # of each thread: the threshold, and the quota of its block
    assert mask["global.load.bytes"] - own == scores.numel() * 4
    assert mask["global.store.sectors"] * 32 == mask["global.store.bytes"] == scores.numel()
    wide = sum(
        n for name, n in mask.items() if name.startswith("inst.ld.global.nc") and "v4" in name
    )
    assert wide == scores.numel() * 4 // 512


def test_nothing_is_read_when_nothing_is_chosen(gpu):
    for density in (0.0, 1.0):
        assert (gpu.call("select_topk", torch.randn(70), density) == bool(density)).all()
        assert gpu.launches == []


@pytest.mark.parametrize(
    "args, message",
    [
        ((torch.zeros(4), 1.5), "got density=1.5"),
        ((torch.zeros(4), -0.1), "expected 0 <= density <= 1"),
        ((torch.zeros(4), float("nan")), "got density=nan"),
        ((torch.zeros(4, dtype=torch.float64), 0.5), "dtype Double, expected Float"),
    ],
)
def test_bad_input_launches_nothing(gpu, args, message):
    with pytest.raises(RuntimeError, match=message):
        gpu.call("select_topk", *args)
    assert gpu.launches == []
    with pytest.raises(RuntimeError, match=message):
        gpu.call("select_topk_global", [torch.zeros(2), args[0]], args[1])
    assert gpu.launches == []
