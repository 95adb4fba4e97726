"""nm_prepare_cuda: words worked out by hand, its inverse, nm_linear's reference on the layout, opcheck, refusals."""

from __future__ import annotations

import dataclasses

import pytest
import torch

from evoprune_kernels import formats, ops
from evoprune_kernels.formats import NMWeight
from evoprune_kernels.ops.nm_linear.reference import nm_linear_reference
from evoprune_kernels.ops.nm_prepare_cuda.cases import CASES
from evoprune_kernels.ops.nm_prepare_cuda.reference import unprepare_cuda

EMPTY = 0x44444444  # eight groups with the indices 0 and 1


def weight_of(groups: dict[tuple[int, int], tuple[int, int]]) -> torch.Tensor:
    """[50, 52], zero but for the two places of some groups: ``(row, group) -> places``."""
    weight = torch.zeros(50, 52)
    for (row, group), places in groups.items():
        for place in places:
            weight[row, group * 4 + place] = 1 + row + place
    return weight


#: (row, group) -> its two places; a nibble is first | second << 2
GROUPS = {
    (0, 0): (1, 3),  # 0xD
    (0, 7): (0, 3),  # 0xC
    (8, 1): (2, 3),  # 0xE
    (17, 2): (0, 2),  # 0x8
    (41, 12): (1, 2),  # 0x9
}


def words(found: dict[tuple[int, int], int]) -> torch.Tensor:
    """[32, 4], empty groups but for some words: ``(lane, word) -> word``."""
    expected = torch.full((32, 4), EMPTY, dtype=torch.int32)
    for at, word in found.items():
        expected[at] = word
    return expected


def test_words_of_16_bit_values():
    values, meta = ops.nm_prepare_cuda(ops.nm_pack(weight_of(GROUPS), 2, 4))
    assert values.shape == (64, 32) and meta.shape == (1, 1, 32, 4)
    assert values[0, :2].tolist() == [2, 4] and values[0, 14:16].tolist() == [1, 4]
    assert values[41, 24:26].tolist() == [43, 44] and int((values != 0).sum()) == 10
    expected = {
        (0, 0): 0x44E4444D,  # t = 0: slab 0, columns 0-15; row 0 low, row 8 high
        (1, 0): 0x4444C444,  # t = 1: columns 16-31
        (4 + 2, 0): 0x44444844,  # row 17 is g = 1 of slab 1: t / 2 = 1
        (
            4 + 1,
            3,
        ): 0x44494444,  # row 41 is g = 1 + 8 of slab 2: w % 2 = 1; columns 48-63: w / 2 = t % 2 = 1
    }
    assert torch.equal(meta[0, 0], words(expected))


def test_words_of_int8_values():
    packed = ops.nm_pack(weight_of(GROUPS), 2, 4).quantize()
    _, meta = ops.nm_prepare_cuda(packed)
    expected = {
        (0, 0): 0xC444444D - (1 << 32),  # t = 0: row 0 of slab 0, columns 0-31
        (1, 0): 0x444444E4,  # t = 1: row 8
        (4, 1): 0x44444844,  # row 17 is g = 1 of slab 1
        (4 + 2 + 1, 2): 0x44494444,  # row 41 is g = 1 + 8 of slab 2, columns 32-63: t = 3
    }
    assert torch.equal(meta[0, 0], words(expected))


@pytest.mark.parametrize("case", CASES, ids=lambda c: c.name)
def test_round_trip(case):
    values, meta, n, m, shared, columns = case.args()
    rows = values.shape[0]
    scale = torch.ones(rows) if values.dtype == torch.int8 else None
    packed = NMWeight(values, meta, n, m, (rows, columns), shared, scale)
    packed.validate()
    prepared = ops.nm_prepare_cuda(packed)
    down, across = -(-rows // 64), -(-columns // 64)
    assert prepared[0].shape == (down * 64, across * 32) and prepared[0].dtype == values.dtype
    assert prepared[1].shape == (down, across, 32, 4) and prepared[1].dtype == torch.int32
    assert torch.equal(unprepare_cuda(*prepared, rows, columns).float(), packed.unpack().float())
    low, high = (prepared[1][..., None] >> torch.arange(s, 32, 4) & 3 for s in (0, 2))
    assert bool((low < high).all())  # a tensor core takes only indices that increase


@pytest.mark.parametrize("shared", [1, 16])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16, torch.int8])
def test_the_reference_of_nm_linear_takes_the_layout(dtype, shared):
    weight = torch.randn(33, 61)
    mask = ops.select_nm(weight.abs(), 2, 4, shared=shared)
    packed = ops.nm_pack(weight, 2, 4, mask, shared=shared)
    packed = packed.quantize() if dtype == torch.int8 else packed.to(dtype)
    x = torch.randn(3, 61).to(torch.float16 if dtype == torch.int8 else dtype).requires_grad_()
    numbers = (*packed.shape, 2, 4, shared, "relu")
    tensors, bias = ops.nm_prepare_cuda(packed), torch.randn(33)
    y = ops.nm_linear.OP(x, *tensors, bias, *numbers, "cuda", packed.scale, impl="reference")
    canonical = (packed.values, packed.meta)
    expected = nm_linear_reference(x, *canonical, bias, *numbers, "canonical", packed.scale)
    assert y.dtype == x.dtype and torch.equal(y, expected)


def test_float16_has_no_cpu_kernel():
    """Where x and values agree the package's own checks pass, and the kernel says what it takes."""
    packed = formats.pack(torch.eye(8), "2:4").to(torch.float16)
    x = torch.ones(2, 8, dtype=torch.float16)
    assert torch.equal(ops.nm_linear(x, packed, impl="reference"), x)
    with pytest.raises((TypeError, RuntimeError), match="Half, expected Float or BFloat16"):
        ops.nm_linear(x, packed, impl="cpu")
    with pytest.raises(TypeError, match=r"float16, got torch\.float32"):
        ops.nm_linear(x.float(), packed)
    quantised = formats.pack(torch.eye(8), "2:4").quantize()
    assert torch.allclose(ops.nm_linear(x, quantised, impl="reference"), x)
    with pytest.raises((TypeError, RuntimeError), match="Half, expected Float or BFloat16"):
        ops.nm_linear(x, quantised, impl="cpu")


def test_bad_input():
    packed = formats.pack(torch.eye(8), "2:4")
    for pattern in ("1:4", "4:8", "1:4v16"):
        with pytest.raises(ValueError, match=rf"2:4 and 2:4v16, got {pattern}"):
            ops.nm_prepare_cuda(formats.pack(torch.zeros(16, 8), pattern))
    short = dataclasses.replace(packed, values=packed.values[:, :3])
    with pytest.raises(ValueError, match=r"expected values \(8, 4\).* got \(8, 3\)"):
        ops.nm_prepare_cuda(short)
    falling = dataclasses.replace(packed, meta=packed.meta.clone())
    falling.meta[3, 0] = 0b01_00_00_11  # group 0: 3, 0
    with pytest.raises(ValueError, match="meta of row 3, group 0: indices do not increase"):
        ops.nm_prepare_cuda(falling, impl="reference")
    values, meta = ops.nm_prepare_cuda(packed)
    with pytest.raises(ValueError, match="2:4 and 2:4v16, got 1:4"):
        nm_linear_reference(torch.ones(1, 8), values, meta, None, 8, 8, 1, 4, 1, "none", "cuda")
    with pytest.raises(RuntimeError, match="layout canonical or cpu, got cuda"):
        numbers = (8, 8, 2, 4, 1, "none", "cuda")
        ops.nm_linear.OP(torch.ones(1, 8), values, meta, None, *numbers, impl="cpu")
    bitmask = formats.pack(torch.eye(8), "unstructured")
    with pytest.raises(ValueError, match="got 'cuda'"):
        tensors = bitmask.tensors().values()
        ops.OPS["bitmask_linear"].reference(torch.ones(1, 8), *tensors, None, 8, 8, "none", "cuda")


def test_opcheck():
    for case in (CASES[2], CASES[5], CASES[7]):
        torch.library.opcheck(torch.ops.evoprune.nm_prepare_cuda.default, case.args())
