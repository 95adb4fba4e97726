"""nm_pack, nm_unpack, nm_prepare_cuda and nm_select_pack on the simulated GPU: bitwise those of the references."""

from __future__ import annotations

import pytest
import torch

from evoprune_kernels import ops
from evoprune_kernels.formats import NMWeight
from evoprune_kernels.ops.nm_pack.cases import CASES as PACK_CASES
from evoprune_kernels.ops.nm_pack.cases import random_weight
from evoprune_kernels.ops.nm_pack.reference import nm_pack_reference
from evoprune_kernels.ops.nm_prepare_cuda.cases import CASES as PREPARE_CASES
from evoprune_kernels.ops.nm_prepare_cuda.reference import nm_prepare_cuda_reference
from evoprune_kernels.ops.nm_select_pack.cases import CASES as SELECT_CASES
from evoprune_kernels.ops.nm_select_pack.reference import nm_select_pack_reference

DTYPES = [torch.float32, torch.float16, torch.bfloat16]


def same_bits(a: torch.Tensor, b: torch.Tensor) -> bool:
    """Equal dtype, shape and bits; a NaN equals any NaN, -0.0 does not equal +0.0."""
    if a.dtype != b.dtype or a.shape != b.shape:
        return False
    if a.is_floating_point():  # torch rewrites the payload of a bfloat16 NaN
        nan = a.isnan()
        if not torch.equal(nan, b.isnan()):
            return False
        a, b = a.masked_fill(nan, 0), b.masked_fill(nan, 0)
    a, b = (t.flatten().contiguous().view(torch.uint8) for t in (a, b))
    return torch.equal(a, b)


def all_same_bits(got, expected) -> bool:
    return all(same_bits(a, b) for a, b in zip(got, expected, strict=True))


def unaligned(tensor: torch.Tensor) -> torch.Tensor:
    """The same values one element into other memory."""
    memory = torch.empty(tensor.numel() + 1, dtype=tensor.dtype)
    view = memory[1:].view(tensor.shape)
    view.copy_(tensor)
    return view


def kernels(gpu) -> list[str]:
    """Which kernels the last call launched, without their template arguments."""
    return [name.split("_kernel")[0].split("nm_", 1)[1] for name, _ in gpu.launches]


def check_pack(gpu, weight, mask, n, m):
    expected = nm_pack_reference(weight, mask, n, m)
    packed = gpu.call("nm_pack", weight, mask, n, m)
    assert all_same_bits(packed, expected)
    dense = gpu.call("nm_unpack", *packed, n, m, weight.shape[1])
    assert same_bits(dense, torch.where(mask, weight, torch.zeros_like(weight)) + 0.0)


@pytest.mark.parametrize("case", PACK_CASES, ids=lambda case: case.name)
def test_pack_and_unpack(gpu, case):
    check_pack(gpu, *case.args())


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize(
    "rows, columns, n, m",
    [(5, 256, 2, 4), (66, 544, 2, 4), (3, 2064, 2, 4), (2, 2100, 4, 8), (3, 41, 1, 2)],
)
def test_pack_and_unpack_in_every_dtype(gpu, rows, columns, n, m, dtype):
    weight, mask = random_weight(torch.Generator().manual_seed(1), rows, columns, n, m)
    check_pack(gpu, weight.to(dtype), mask, n, m)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_special_numbers_keep_their_bits(gpu, dtype):
    nan, inf = float("nan"), float("inf")
    weight = torch.tensor([[nan, -0.0, -inf, 1e-7, -0.0, 0.0, inf, nan] * 2] * 2).to(dtype)
    mask = torch.tensor([[1, 1, 0, 0, 1, 0, 1, 0] * 2, [0, 0, 1, 0, 0, 0, 0, 0] * 2]).bool()
    check_pack(gpu, weight, mask, 2, 4)
    check_pack(gpu, weight[:, :15], mask[:, :15], 2, 4)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_unaligned_tensors_and_strides(gpu, dtype):
    weight, mask = random_weight(torch.Generator(), 9, 64, 2, 4)
    weight = weight.to(dtype)
    check_pack(gpu, unaligned(weight), unaligned(mask), 2, 4)
    check_pack(gpu, weight, unaligned(mask), 2, 4)
    check_pack(gpu, weight.t().contiguous().t(), mask, 2, 4)
    values, meta = nm_pack_reference(weight, mask, 2, 4)
    dense = gpu.call("nm_unpack", unaligned(values), unaligned(meta), 2, 4, 64)
    assert same_bits(dense, torch.where(mask, weight, torch.zeros_like(weight)))
    prepared = gpu.call("nm_prepare_cuda", unaligned(values), unaligned(meta), 2, 4, 1, 64)
    assert all_same_bits(prepared, nm_prepare_cuda_reference(values, meta, 2, 4, 1, 64))


def test_every_number_of_kept_of_small_groups(gpu):
    """m up to 6 and the largest groups: all masks that the pattern allows, in both places of a word."""
    for n, m in [(2, 4), (1, 3), (4, 6), (2, 2)]:
        masks = torch.arange(1 << m)[:, None] >> torch.arange(m) & 1
        masks = masks[masks.sum(1) <= n].bool()
        mask = masks.repeat(1, 16)  # whole words, and the one-pass kernel for 2:4
        check_pack(gpu, torch.randn(mask.shape), mask, n, m)
    for n, m in [(1, 32), (31, 32), (32, 32), (16, 31)]:
        check_pack(gpu, *random_weight(torch.Generator(), 3, 70, n, m), n, m)


@pytest.mark.parametrize("columns", [2064, 2062])  # one pass, and the kernel for the rest
def test_the_first_over_full_group_is_named(gpu, columns):
    mask = torch.zeros(70, columns, dtype=torch.bool)
    mask[69, :4] = True
    mask[68, 2060:2064] = True
    mask[68, 2061] = False
    mask[68, 2059] = mask[68, 2056] = True
    count = int(mask[68, 2060:].sum())
    stop = min(2064, columns)
    if columns == 2062:  # a last group of two can not be over-full
        mask[68, 2057] = True
        count, stop = 3, 2060
    weight = torch.ones(70, columns)
    with pytest.raises(
        RuntimeError,
        match=rf"weight\[68, {stop - 4}:{stop}\] keeps {count} values, .* 2:4 allows 2",
    ):
        gpu.call("nm_pack", weight, mask, 2, 4)


@pytest.mark.parametrize("case", PREPARE_CASES, ids=lambda case: case.name)
def test_prepare(gpu, case):
    args = case.args()
    assert all_same_bits(gpu.call("nm_prepare_cuda", *args), nm_prepare_cuda_reference(*args))


@pytest.mark.parametrize("dtype", [*DTYPES, torch.int8], ids=str)
@pytest.mark.parametrize("rows, columns, shared", [(3, 1100, 1), (130, 100, 16)])
def test_prepare_several_spans(gpu, rows, columns, shared, dtype):
    weight = torch.randint(-9, 9, (rows, columns)).float()
    mask = ops.select_nm(torch.rand(rows, columns), 2, 4, shared=shared)
    packed = NMWeight.pack(weight, 2, 4, shared, mask=mask)
    args = (packed.values.to(dtype), packed.meta, 2, 4, shared, columns)
    assert all_same_bits(gpu.call("nm_prepare_cuda", *args), nm_prepare_cuda_reference(*args))


@pytest.mark.parametrize("columns", [512, 1004])
def test_prepare_names_the_first_group_that_falls(gpu, columns):
    weight, mask = random_weight(torch.Generator(), 68, columns, 2, 4)
    values, meta = nm_pack_reference(weight, mask, 2, 4)
    meta[66, 3] = 0b11_11_01_00  # group 7: 3, 3
    meta[65, 60] = 0b01_00_10_11  # group 120: 3, 2
    meta[65, 61] = 0
    with pytest.raises(RuntimeError, match="meta of row 65, group 120: indices do not increase"):
        gpu.call("nm_prepare_cuda", values, meta, 2, 4, 1, columns)


@pytest.mark.parametrize("case", SELECT_CASES, ids=lambda case: case.name)
def test_select_pack(gpu, case):
    args = case.args()
    expected = nm_select_pack_reference(*args)
    once = gpu.call("nm_select_pack", *args)
    assert all_same_bits(once, expected)
    assert all_same_bits(gpu.call("nm_select_pack", *args), once)


@pytest.mark.parametrize("scores", DTYPES, ids=str)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_select_pack_takes_scores_of_any_dtype(gpu, dtype, scores):
    generator = torch.Generator().manual_seed(2)
    weight = torch.randn(3, 592, generator=generator).to(dtype)
    rank = torch.randint(-3, 3, (3, 592), generator=generator).to(scores)
    rank[:, ::7] = float("nan")
    expected = nm_select_pack_reference(weight, rank, 2, 4)
    assert all_same_bits(gpu.call("nm_select_pack", weight, rank, 2, 4), expected)
    two_steps = gpu.call("nm_select_pack", unaligned(weight), rank, 2, 4)
    assert all_same_bits(two_steps, expected)
    assert kernels(gpu) == ["pack", "prepare_cuda"]


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_every_order_of_four_scores(gpu, dtype):
    levels = torch.tensor([float("nan"), -float("inf"), -1.0, -0.0, 0.0, 1.0, float("inf")])
    scores = torch.cartesian_prod(levels, levels, levels, levels).flatten()
    scores = torch.cat([scores, torch.zeros(-scores.numel() % 256)]).view(-1, 256).to(dtype)
    weight = torch.randn(scores.shape).to(dtype)
    expected = nm_select_pack_reference(weight, scores, 2, 4)
    assert all_same_bits(gpu.call("nm_select_pack", weight, scores, 2, 4), expected)


@pytest.mark.parametrize(
    "dtype, scores, columns",
    [
        (torch.float32, torch.float32, 256),
        (torch.bfloat16, torch.bfloat16, 512),
        (torch.bfloat16, torch.float32, 512),
    ],
    ids=str,
)
def test_select_pack_moves_every_byte_once(gpu, dtype, scores, columns):
    weight, rank = torch.randn(64, columns).to(dtype), torch.randn(64, columns).to(scores)
    results = gpu.call("nm_select_pack", weight, rank, 2, 4)
    assert kernels(gpu) == ["pack24"]
    stats, read = gpu.stats, weight.nbytes + rank.nbytes
    written = sum(t.nbytes for t in results)
    assert stats["global.load.bytes"] == stats["global.load.footprint"] == read
    assert stats["global.load.sectors"] * 32 == read
    assert stats["global.load.requests"] * 512 == read  # 16 bytes a lane
    assert stats["global.store.bytes"] == stats["global.store.footprint"] == written
    assert stats["global.store.sectors"] * 32 == written
    for kind in ("load", "store"):
        wavefronts = stats[f"shared.{kind}.wavefronts"]
        assert wavefronts == stats[f"shared.{kind}.ideal"] > 0


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16], ids=str)
def test_pack_and_unpack_move_every_byte_once(gpu, dtype):
    weight, mask = random_weight(torch.Generator(), 16, 512, 2, 4)
    weight = weight.to(dtype)
    packed = gpu.call("nm_pack", weight, mask, 2, 4)
    small = sum(t.nbytes for t in packed)
    stats = gpu.stats
    assert kernels(gpu) == ["pack24"]
    assert stats["global.load.sectors"] * 32 == weight.nbytes + mask.nbytes
    assert stats["global.load.footprint"] == weight.nbytes + mask.nbytes
    assert stats["global.store.sectors"] * 32 == stats["global.store.footprint"] == small
    gpu.call("nm_unpack", *packed, 2, 4, 512)
    stats = gpu.stats
    assert kernels(gpu) == ["unpack24"]
    assert stats["global.load.sectors"] * 32 == stats["global.load.footprint"] == small
    assert stats["global.store.sectors"] * 32 == stats["global.store.footprint"] == weight.nbytes


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.int8], ids=str)
def test_prepare_moves_every_byte_once(gpu, dtype):
    weight, mask = random_weight(torch.Generator(), 64, 512, 2, 4)
    values, meta = nm_pack_reference(weight, mask, 2, 4)
    values = values.to(dtype)
    results = gpu.call("nm_prepare_cuda", values, meta, 2, 4, 1, 512)
    stats, written = gpu.stats, sum(t.nbytes for t in results)
    assert stats["global.load.sectors"] * 32 == values.nbytes + meta.nbytes
    assert stats["global.load.footprint"] == values.nbytes + meta.nbytes
    assert stats["global.store.sectors"] * 32 == stats["global.store.footprint"] == written
    assert stats["shared.load.wavefronts"] == stats["shared.load.ideal"]


ZERO, MASK = torch.zeros(4, 8), torch.zeros(4, 8, dtype=torch.bool)
META = torch.zeros(4, 1, dtype=torch.uint8)


@pytest.mark.parametrize(
    "op, args, message",
    [
        ("nm_pack", (ZERO, MASK, 5, 4), "got n=5 m=4"),
        ("nm_pack", (ZERO, MASK, 2, 33), "m <= 32, got n=2 m=33"),
        (
            "nm_pack",
            (ZERO, MASK[:, :4], 2, 4),
            r"mask of shape \[4, 8\], got 2 dimensions \[4, 4\]",
        ),
        ("nm_pack", (ZERO, ZERO, 2, 4), "mask has dtype Float, expected Bool"),
        ("nm_pack", (ZERO.double(), MASK, 2, 4), "weight has dtype Double, expected Float, Half"),
        ("nm_pack", (ZERO[0], MASK, 2, 4), "weight of 2 dimensions, got 1"),
        (
            "nm_unpack",
            (ZERO, META, 2, 4, 8),
            r"values of shape \[4, 4\], got 2 dimensions \[4, 8\]",
        ),
        ("nm_unpack", (ZERO[:, :4], META, 2, 4, -1), "in_features >= 0, got -1"),
        ("nm_unpack", (ZERO[:, :4], META.int(), 2, 4, 8), "meta has dtype Int, expected Byte"),
        ("nm_unpack", (ZERO[:, :4].double(), META, 2, 4, 8), "values has dtype Double"),
        ("nm_prepare_cuda", (ZERO[:, :2], META, 1, 4, 1, 8), "2:4 and 2:4v16, got 1:4 shared by 1"),
        ("nm_prepare_cuda", (ZERO[:, :4], META, 2, 4, 1, 9), r"values of shape \[4, 6\], got"),
        ("nm_prepare_cuda", (ZERO[:, :4], META, 2, 4, 16, 8), r"meta of shape \[1, 1\], got"),
        ("nm_prepare_cuda", (ZERO[:, :4].long(), META, 2, 4, 1, 8), "values has dtype Long"),
        ("nm_select_pack", (ZERO, ZERO[:2], 2, 4), r"scores of shape \[4, 8\], got"),
        ("nm_select_pack", (ZERO, ZERO.double(), 2, 4), "scores has dtype Double"),
        ("nm_select_pack", (ZERO, ZERO, 0, 4), "got n=0 m=4"),
    ],
)
def test_bad_input_launches_nothing(gpu, op, args, message):
    with pytest.raises(RuntimeError, match=message):
        gpu.call(op, *args)
    assert gpu.launches == []
