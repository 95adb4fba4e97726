"""Every torch format against the independent C++ oracle, bit by bit; and the oracle against hostile input."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from evoprune_kernels import _ext
from evoprune_kernels.formats import BitmaskWeight, BlockWeight, NMWeight

native = _ext.native
pytestmark = pytest.mark.skipif(
    native is None, reason=f"_native: {_ext.reasons.get('_native', 'loaded')}"
)

DTYPES = [torch.float32, torch.bfloat16]
NM_PATTERNS = [(2, 4), (1, 4), (4, 8), (1, 1), (1, 2), (3, 5), (2, 3), (7, 32), (4, 4), (16, 32)]
NM_PATTERNS += [(5, 17), (1, 32)]
EDGES = [(1, 1), (2, 2), (16, 16), (3, 5), (1, 8), (8, 1), (32, 4), (256, 1)]
SHAPES = [(1, 1), (4, 8), (5, 7), (0, 8), (3, 0), (0, 0), (16, 16), (17, 33), (40, 61), (2, 130)]


def array(tensor: torch.Tensor) -> np.ndarray:
    """The oracle's form of a tensor: bf16 as the bits in uint16."""
    return (tensor.view(torch.uint16) if tensor.dtype == torch.bfloat16 else tensor).numpy()


def one_nan(words: np.ndarray) -> np.ndarray:
    """The same bits, with one NaN for all: torch's bf16 arithmetic does not keep the payload of a NaN."""
    if words.dtype == np.uint16:
        return np.where(words & 0x7FFF > 0x7F80, np.uint16(0x7FC0), words)
    return (
        np.where(np.isnan(words), np.float32("nan"), words) if words.dtype == np.float32 else words
    )


def assert_same_bits(actual: torch.Tensor, expected: np.ndarray) -> None:
    actual = array(actual)
    assert actual.dtype == expected.dtype
    assert actual.shape == expected.shape
    assert one_nan(actual).tobytes() == one_nan(expected).tobytes()


def weight_and_mask(shape: tuple[int, int], dtype: torch.dtype, density: float):
    """Random, with kept zeros, negative zeros, infinities and NaN among the weights."""
    weight = torch.randn(shape)
    special = torch.tensor([0.0, -0.0, float("inf"), -float("inf"), float("nan"), 1e-40])
    at = torch.rand(shape) < 0.3
    weight[at] = special[torch.randint(0, len(special), (int(at.sum()),))]
    return weight.to(dtype), torch.rand(shape) < density


def check(packed, expected_tensors, unpack) -> None:
    """Packed tensors and the dense weight, both ways, bit by bit."""
    for tensor, expected in zip(packed.tensors().values(), expected_tensors, strict=True):
        assert_same_bits(tensor, expected)
    packed.validate()
    assert_same_bits(packed.unpack(), unpack(*map(array, packed.tensors().values())))


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("n, m", NM_PATTERNS)
@pytest.mark.parametrize("given", [True, False], ids=["mask", "nonzero"])
def test_nm(n, m, dtype, given):
    for shape in SHAPES:
        weight, _ = weight_and_mask(shape, dtype, 1.0)
        scores = torch.randint(0, 4, shape).float()
        mask = torch.from_numpy(native.select_nm(scores.numpy(), n, m))
        mask &= torch.rand(shape) < 0.8  # under-full groups
        if not given:
            weight, mask = torch.where(mask, weight, 0.0), None
        packed = NMWeight.pack(weight, n, m, mask=mask)
        expected = native.nm_pack(array(weight), n, m, None if mask is None else mask.numpy())
        columns = shape[1]
        check(packed, expected, lambda v, meta, k=columns: native.nm_unpack(v, meta, n, m, k))


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("n, m", [(2, 4), (1, 4), (3, 5), (7, 32)])
def test_nm_of_shared_rows(n, m, dtype):
    """The oracle packs every row by itself with the mask that its strip shares."""
    for shape in [*SHAPES, (35, 130)]:
        rows, columns = shape
        weight, _ = weight_and_mask(shape, dtype, 1.0)
        scores = torch.randint(0, 4, (-(-rows // 16), columns)).float()
        chosen = torch.from_numpy(native.select_nm(scores.numpy(), n, m))
        shared = chosen.repeat_interleave(16, 0)[:rows]
        shared[-1:] &= torch.rand(1, columns) < 0.8  # of a row or a whole strip: also under-full
        union = torch.stack(
            [shared[r - r % 16 : r - r % 16 + 16].any(0) for r in range(rows)] or [shared.any(0)]
        )
        union = union[:rows]
        packed = NMWeight.pack(weight, n, m, 16, mask=shared)
        packed.validate()
        kept = torch.where(shared, weight, torch.zeros_like(weight))
        values, meta = native.nm_pack(array(kept), n, m, union.numpy())
        assert_same_bits(packed.values, values)
        assert_same_bits(packed.meta, meta[::16])
        assert_same_bits(packed.unpack(), native.nm_unpack(values, meta, n, m, columns))


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("bn, bk", EDGES)
@pytest.mark.parametrize("density", [0.0, 0.05, 0.5, 1.0, None])
def test_block(bn, bk, dtype, density):
    for shape in SHAPES:
        weight, mask = weight_and_mask(shape, dtype, density or 0.0)
        if density is None:
            weight, mask = torch.where(torch.rand(shape) < 0.1, weight, 0.0), None
        packed = BlockWeight.pack(weight, bn, bk, mask=mask)
        expected = native.block_pack(array(weight), bn, bk, None if mask is None else mask.numpy())
        check(packed, expected, lambda *tensors, s=shape: native.block_unpack(*tensors, *s))


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("density", [0.0, 0.05, 0.5, 1.0, None])
def test_bitmask(dtype, density):
    for shape in SHAPES:
        weight, mask = weight_and_mask(shape, dtype, density or 0.0)
        mask = None if density is None else mask
        packed = BitmaskWeight.pack(weight, mask=mask)
        expected = native.bitmask_pack(array(weight), None if mask is None else mask.numpy())
        check(packed, expected, lambda *tensors, s=shape: native.bitmask_unpack(*tensors, s[1]))


def test_drawings():
    """The literal examples of the formats, from the oracle alone."""
    weight = np.array([[0, 5, 0, 6, 7, 8, 0, 0]], dtype=np.float32)
    values, meta = native.nm_pack(weight, 2, 4)
    assert values.tolist() == [[5, 6, 7, 8]]
    assert meta.tolist() == [[0x4D]]
    weight = np.array(
        [[1, 2, 0, 0, 3], [4, 5, 0, 0, 6], [0, 0, 7, 0, 0], [0, 0, 0, 8, 0]], dtype=np.float32
    )
    values, row_ptr, col_idx = native.block_pack(weight, 2, 2)
    assert values.tolist() == [[[1, 2], [4, 5]], [[3, 0], [6, 0]], [[7, 0], [0, 8]]]
    assert (row_ptr.tolist(), col_idx.tolist()) == ([0, 2, 3], [0, 2, 1])
    weight = np.array([[0, 1, 0, 2, 0, 0, 0, 0, 3, 0], [0] * 9 + [4]], dtype=np.float32)
    values, bits, row_ptr = native.bitmask_pack(weight)
    assert (values.tolist(), row_ptr.tolist()) == ([1, 2, 3, 4], [0, 3, 4])
    assert bits.tolist() == [[0x0A, 0x01], [0x00, 0x02]]


def test_over_full_group_is_the_same_error_in_both():
    weight = torch.zeros(3, 8)
    weight[1, 4:7] = 1
    message = r"weight\[1, 4:8\] keeps 3 values, the pattern 2:4 allows 2"
    with pytest.raises(ValueError, match=message):
        NMWeight.pack(weight, 2, 4)
    with pytest.raises(ValueError, match=message):
        native.nm_pack(weight.numpy(), 2, 4)


def int32(*numbers: int) -> np.ndarray:
    return np.array(numbers, dtype=np.int32)


HOSTILE = {
    "n above m": lambda: native.nm_pack(np.zeros((2, 8), np.float32), 5, 4),
    "m above 32": lambda: native.nm_pack(np.zeros((2, 8), np.float32), 1, 33),
    "float64 weight": lambda: native.nm_pack(np.zeros((2, 8)), 2, 4),
    "three dimensions": lambda: native.nm_pack(np.zeros((2, 8, 1), np.float32), 2, 4),
    "mask of another shape": lambda: native.bitmask_pack(
        np.zeros((2, 8), np.float32), np.ones((8, 2), bool)
    ),
    "mask of another dtype": lambda: native.bitmask_pack(
        np.zeros((2, 8), np.float32), np.ones((2, 8))
    ),
    "mask that is no array": lambda: native.bitmask_pack(np.zeros((2, 8), np.float32), [1]),
    "values too narrow": lambda: native.nm_unpack(
        np.zeros((1, 3), np.float32), np.zeros((1, 1), np.uint8), 2, 4, 8
    ),
    "meta too narrow": lambda: native.nm_unpack(
        np.zeros((1, 4), np.float32), np.zeros((1, 0), np.uint8), 2, 4, 8
    ),
    "indices equal": lambda: native.nm_unpack(
        np.zeros((1, 4), np.float32), np.zeros((1, 1), np.uint8), 2, 4, 8
    ),
    "index at m": lambda: native.nm_unpack(
        np.zeros((1, 1), np.float32), np.full((1, 1), 3, np.uint8), 1, 3, 3
    ),
    "spare bits": lambda: native.nm_unpack(
        np.zeros((1, 1), np.float32), np.full((1, 1), 4, np.uint8), 1, 3, 3
    ),
    "value beyond the edge": lambda: native.nm_unpack(
        np.ones((1, 1), np.float32), np.full((1, 1), 3, np.uint8), 1, 4, 3
    ),
    "negative size": lambda: native.nm_unpack(
        np.zeros((1, 0), np.float32), np.zeros((1, 0), np.uint8), 2, 4, -8
    ),
    "edge of 0": lambda: native.block_pack(np.zeros((2, 2), np.float32), 0, 2),
    "row_ptr too short": lambda: native.block_unpack(
        np.zeros((0, 2, 2), np.float32), int32(0), int32(), 4, 4
    ),
    "row_ptr empty": lambda: native.block_unpack(
        np.zeros((0, 2, 2), np.float32), int32(), int32(), 0, 4
    ),
    "row_ptr falls": lambda: native.block_unpack(
        np.zeros((1, 2, 2), np.float32), int32(0, 2, 1), int32(0), 4, 4
    ),
    "row_ptr beyond": lambda: native.block_unpack(
        np.zeros((1, 2, 2), np.float32), int32(0, 1, 9), int32(0), 4, 4
    ),
    "row_ptr negative": lambda: native.block_unpack(
        np.zeros((1, 2, 2), np.float32), int32(-1, 0, 1), int32(0), 4, 4
    ),
    "column beyond": lambda: native.block_unpack(
        np.zeros((1, 2, 2), np.float32), int32(0, 1), int32(2), 2, 4
    ),
    "columns equal": lambda: native.block_unpack(
        np.zeros((2, 2, 2), np.float32), int32(0, 2), int32(1, 1), 2, 4
    ),
    "block padding": lambda: native.block_unpack(
        np.ones((1, 2, 2), np.float32), int32(0, 1), int32(1), 2, 3
    ),
    "too large a matrix": lambda: native.block_unpack(
        np.zeros((0, 2, 2), np.float32), int32(0, 0), int32(), 2, 2**62
    ),
    "more bits than values": lambda: native.bitmask_unpack(
        np.zeros(1, np.float32), np.full((1, 1), 3, np.uint8), int32(0, 1), 8
    ),
    "fewer bits than values": lambda: native.bitmask_unpack(
        np.zeros(2, np.float32), np.full((1, 1), 1, np.uint8), int32(0, 2), 8
    ),
    "bits beyond the edge": lambda: native.bitmask_unpack(
        np.zeros(1, np.float32), np.full((1, 1), 8, np.uint8), int32(0, 1), 3
    ),
    "int64 row_ptr": lambda: native.bitmask_unpack(
        np.zeros(1, np.float32), np.full((1, 1), 1, np.uint8), np.array([0, 1]), 3
    ),
}


@pytest.mark.parametrize("name", HOSTILE)
def test_hostile_input_is_a_value_error(name):
    with pytest.raises(ValueError, match=r"expected|keeps|increase|beyond|spare|falls"):
        HOSTILE[name]()


def test_non_contiguous_arrays():
    weight = np.arange(24, dtype=np.float32).reshape(4, 6)
    mask = weight % 2 == 1
    expected = native.bitmask_pack(np.ascontiguousarray(weight.T), np.ascontiguousarray(mask.T))
    for actual, wanted in zip(native.bitmask_pack(weight.T, mask.T), expected, strict=True):
        assert np.array_equal(actual, wanted)


def test_cpu_features_agree_with_the_levels():
    features = native.cpu_features()
    if not features or not _ext.cpu_loaded():
        pytest.skip("not an x86 CPU, or _cpu.so is not loaded")
    assert ("avx2" in _ext.isa_levels()) == (features["avx2"] and features["fma"])
