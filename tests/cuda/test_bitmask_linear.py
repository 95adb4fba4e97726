"""``bitmask_linear`` on the simulated GPU: every case, dtypes, alignment, non-finite numbers, hostile input, counts."""

from __future__ import annotations

import dataclasses
from itertools import pairwise

import pytest
import torch
from torch.nn import functional as F

from evoprune_kernels.formats import BitmaskWeight
from evoprune_kernels.formats.bitmask import unpack_bits
from evoprune_kernels.ops._linear import activate
from evoprune_kernels.ops.bitmask_linear.cases import CASES
from tests.tolerance import assert_accurate

F32, F16, BF16 = torch.float32, torch.float16, torch.bfloat16


def call(gpu, x, packed, bias=None, activation="none"):
    tensors = (packed.values, packed.bits, packed.row_ptr)
    rest = (*packed.shape, activation, "canonical", packed.scale)
    return gpu.call("bitmask_linear", x, *tensors, bias, *rest)


def oracle(x, packed, bias, activation, dtype):
    """The dense product in ``dtype``."""
    bias = None if bias is None else bias.to(dtype)
    return activate(F.linear(x.to(dtype), packed.unpack().to(dtype), bias), activation)


def assert_right(y, x, packed, bias=None, activation="none"):
    truth = oracle(x, packed, bias, activation, torch.float64)
    assert_accurate(y, truth, oracle(x, packed, bias, activation, x.dtype))


def weight(rows, columns, dtype, density=0.3, seed=0):
    generator = torch.Generator().manual_seed(seed)
    dense = torch.randn(rows, columns, generator=generator)
    mask = torch.rand(rows, columns, generator=generator) < density
    if dtype == torch.int8:
        return BitmaskWeight.pack(dense, mask=mask).quantize()
    return BitmaskWeight.pack(dense.to(dtype), mask=mask)


def tokens_of(count, columns, dtype, seed=1):
    return torch.randn(count, columns, generator=torch.Generator().manual_seed(seed)).to(dtype)


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_matches_the_dense_product(gpu, case):
    x, packed, bias, activation = case.args()
    y = call(gpu, x, packed, bias, activation)
    assert_right(y, x, packed, bias, activation)
    assert len(gpu.launches) == (1 if y.numel() else 0)


@pytest.mark.parametrize("stored", [F32, F16, BF16, torch.int8], ids=str)
@pytest.mark.parametrize("tokens", [1, 3, 7, 16])
def test_dtypes_and_token_counts(gpu, stored, tokens):
    packed = weight(21, 203, stored)
    for dtype in (F32, F16, BF16) if stored == torch.int8 else (stored,):
        x = tokens_of(tokens, 203, dtype)
        bias = tokens_of(1, 21, F16)[0]
        assert_right(call(gpu, x, packed, bias, "relu"), x, packed, bias, "relu")


@pytest.mark.parametrize("density", [0.0, 0.02, 0.5, 1.0])
@pytest.mark.parametrize("tokens, dtype", [(1, F16), (16, F16), (5, F32)])
def test_rows_of_several_batches_and_chunks(gpu, density, tokens, dtype):
    """2048 columns of 16 tokens, or of 8 of float, fill the shared memory for x."""
    packed = weight(3, 2048 + 77, dtype, density)
    x = tokens_of(tokens, 2048 + 77, dtype)
    y = call(gpu, x, packed)
    assert_right(y, x, packed)
    assert torch.equal(y, call(gpu, x, packed))


@pytest.mark.parametrize(
    "tokens, x, stored, takes_mma",
    [(1, F16, F16, False), (1, BF16, torch.int8, False), (2, BF16, BF16, True), (2, F16, torch.int8, True),
     (16, F32, F32, False), (2, F32, torch.int8, False)],
)  # fmt: skip
def test_which_kernel_is_taken(gpu, tokens, x, stored, takes_mma):
    """The tensor cores for several tokens of 16 bits."""
    packed = weight(1, 64, stored)
    given = tokens_of(tokens, 64, x)
    assert_right(call(gpu, given, packed), given, packed)
    assert ("mma" in gpu.launches[-1].name) == takes_mma


@pytest.mark.parametrize("density", [0.02, 0.3])
@pytest.mark.parametrize(
    "tokens, x, stored", [(1, F16, F16), (1, BF16, torch.int8), (3, F32, F32), (7, F32, torch.int8), (9, BF16, BF16)],
    ids=str,
)  # fmt: skip
def test_no_bank_conflicts(gpu, tokens, x, stored, density):
    """As long as no piece keeps more than half; of int8 all may be kept."""
    packed = weight(32, 1024, stored, 1.0 if stored == torch.int8 else density)
    given = tokens_of(tokens, 1024, x)
    assert_right(call(gpu, given, packed), given, packed)
    for kind in ("load", "store", "copy"):
        assert gpu.stats[f"shared.{kind}.wavefronts"] == gpu.stats[f"shared.{kind}.ideal"]


@pytest.mark.parametrize("stored, x", [(F16, F16), (torch.int8, F16), (torch.int8, BF16)], ids=str)
@pytest.mark.parametrize("offset", [0, 5])
@pytest.mark.parametrize("density", [0.02, 0.3, 1.0])
@pytest.mark.parametrize("tokens", [1, 7, 16])
def test_chunks_of_1024_columns(gpu, stored, x, offset, density, tokens):
    """Rows of three chunks whose values begin anywhere: the sector between two chunks is kept."""
    packed = weight(19, 2056, stored, density)
    packed = dataclasses.replace(packed, values=shifted(packed.values, offset))
    given = tokens_of(tokens, 2056, x)
    y = call(gpu, given, packed, None, "relu")
    assert_right(y, given, packed, None, "relu")
    assert torch.equal(y, call(gpu, given, packed, None, "relu"))


def test_a_chunk_without_values(gpu):
    """Rows that keep nothing in one chunk of three, or in all."""
    mask = torch.rand(5, 3072, generator=torch.Generator().manual_seed(3)) < 0.4
    for row in range(3):
        mask[row, 1024 * row : 1024 * (row + 1)] = False
    mask[3] = False
    dense = torch.randn(5, 3072, generator=torch.Generator().manual_seed(4)).half()
    packed = BitmaskWeight.pack(dense, mask=mask)
    x = tokens_of(2, 3072, F16)
    assert_right(call(gpu, x, packed), x, packed)


def shifted(t, offset):
    """The same numbers, `offset` elements from where memory is aligned."""
    return torch.cat((t.new_zeros(offset), t.flatten()))[offset:].view(t.shape)


@pytest.mark.parametrize(
    "stored, dtype", [(F32, F32), (BF16, BF16), (torch.int8, F32), (torch.int8, F16)], ids=str
)
@pytest.mark.parametrize("offset", [1, 3])
@pytest.mark.parametrize("columns", [90, 256])
def test_tensors_that_are_not_aligned(gpu, stored, dtype, offset, columns):
    packed = weight(9, columns, stored)
    x = tokens_of(3, columns, dtype)
    expected = call(gpu, x, packed)
    moved = dataclasses.replace(
        packed,
        values=shifted(packed.values, offset),
        bits=shifted(packed.bits, offset),
        row_ptr=shifted(packed.row_ptr, offset),
    )
    assert_right(expected, x, packed)
    assert_right(call(gpu, shifted(x, offset), moved), x, packed)


def test_only_kept_entries_take_part(gpu):
    inf, nan = float("inf"), float("nan")
    dense = torch.tensor([[inf, 1.0, 0.0, 0.0], [nan, 0.0, 2.0, 0.0], [0.0, 0.0, 3.0, 0.0]])
    packed = BitmaskWeight.pack(
        dense, mask=torch.tensor([[1, 1, 0, 0], [1, 0, 1, 0], [0, 0, 1, 0]]) > 0
    )
    for tokens in (1, 3, 8):
        x = torch.ones(tokens, 4)
        x[0, 1], x[:, 3] = nan, inf
        y = call(gpu, x, packed)
        assert y[0, 0].isnan() and torch.equal(y[1:, 0], torch.full((tokens - 1,), inf))
        assert y[:, 1].isnan().all()
        assert torch.equal(y[:, 2], torch.full((tokens,), 3.0))


@pytest.mark.parametrize("stored, dtype", [(F16, F16), (BF16, BF16), (torch.int8, BF16)], ids=str)
@pytest.mark.parametrize("tokens", [1, 3, 16])
@pytest.mark.parametrize("column", [5, 1500])
def test_only_kept_entries_take_part_in_fragments(gpu, stored, dtype, tokens, column):
    """Infinity in x reaches the rows that keep its column, and no other; likewise infinite weights."""
    packed = weight(20, 2048, stored, 0.5)
    x = tokens_of(tokens, 2048, dtype)
    x[0, column] = float("inf")
    if tokens > 1:
        x[1, column + 1] = float("nan")
    if stored != torch.int8:
        packed.values[7] = float("inf")  # in row 0
    kept = unpack_bits(packed.bits, 2048)
    pairs = packed.unpack().double() * x.double().unsqueeze(1)  # [tokens, rows, columns]
    expected = torch.where(kept, pairs, torch.zeros(())).sum(2)
    y = call(gpu, x, packed)
    finite = expected.isfinite()
    assert 0 < finite[0].sum() < 20
    assert torch.equal(y.isfinite(), finite)
    assert torch.equal(y[~finite].double().nan_to_num(7.0), expected[~finite].nan_to_num(7.0))
    clean = x.nan_to_num(0.0, 0.0)
    assert_accurate(
        torch.where(finite, y, torch.zeros((), dtype=dtype)),
        torch.where(finite, expected, torch.zeros((), dtype=torch.double)),
        torch.where(
            finite, oracle(clean, packed, None, "none", dtype), torch.zeros((), dtype=dtype)
        ),
    )


@pytest.mark.parametrize(
    "row_ptr",
    [
        [0, 10**6, -5, 2**31 - 1, 40],  # beyond the values and before them
        [50, 40, 30, 20, 10],  # falling
        [0, 0, 0, 0, 0],  # fewer than the bits say
        [0, 60, 60, 60, 60],  # more than the bits say
        [-(2**31)] * 5,
    ],
)
@pytest.mark.parametrize("tokens", [1, 5])
@pytest.mark.parametrize("dtype", [F32, F16], ids=str)
def test_a_row_ptr_that_lies_reads_nothing_outside(gpu, row_ptr, tokens, dtype):
    """The simulator stops a kernel at the first byte outside of a tensor; validate() is what tells the user."""
    packed = weight(4, 40, dtype)
    lying = dataclasses.replace(packed, row_ptr=torch.tensor(row_ptr, dtype=torch.int32))
    assert call(gpu, tokens_of(tokens, 40, dtype), lying).shape == (tokens, 4)
    with pytest.raises(ValueError, match="row"):
        lying.validate()


@pytest.mark.parametrize("dtype", [F32, F16], ids=str)
def test_fewer_values_than_bits(gpu, dtype):
    """A row ends where its values end: the first bits count."""
    packed = weight(1, 200, dtype, 0.5)
    fewer = dataclasses.replace(packed, row_ptr=torch.tensor([0, 31], dtype=torch.int32))
    x = tokens_of(3, 200, dtype)
    mask = unpack_bits(packed.bits, 200)
    mask &= mask.int().cumsum(1) <= 31
    assert_right(call(gpu, x, fewer), x, BitmaskWeight.pack(packed.unpack(), mask=mask))


@pytest.mark.parametrize("dtype", [F32, F16], ids=str)
def test_spare_bits_are_ignored(gpu, dtype):
    packed = weight(4, 37, dtype)
    x = tokens_of(2, 37, dtype)
    bits = packed.bits.clone()
    bits[:, -1] |= 0b1110_0000
    y = call(gpu, x, dataclasses.replace(packed, bits=bits))
    assert torch.equal(y, call(gpu, x, packed))


@pytest.mark.parametrize(
    "change, message",
    [
        ({"x": torch.zeros(2, 63)}, r"x\.size\(-1\) = 64, got 63"),
        ({"values": torch.zeros(3, dtype=F16)}, "values has dtype Half"),
        ({"values": torch.zeros(3, dtype=torch.int8)}, "expected a scale"),
        ({"values": torch.zeros(3, 1)}, "values of 1 dimension, got 2"),
        ({"bits": torch.zeros(40, 7, dtype=torch.uint8)}, r"bits\.size\(1\) = 8, got 7"),
        ({"bits": torch.zeros(40, 8, dtype=torch.int8)}, "bits has dtype Char, expected Byte"),
        ({"row_ptr": torch.zeros(40, dtype=torch.int32)}, r"row_ptr\.size\(0\) = 41, got 40"),
        ({"row_ptr": torch.zeros(41, dtype=torch.int64)}, "row_ptr has dtype Long, expected Int"),
        ({"bias": torch.zeros(7)}, r"bias\.size\(0\) = 40, got 7"),
    ],
)
def test_bad_input_launches_nothing(gpu, change, message):
    packed = weight(40, 64, F32)
    given = {"x": torch.zeros(2, 64)} | packed.tensors() | {"bias": None} | change
    with pytest.raises(RuntimeError, match=message):
        gpu.call("bitmask_linear", *given.values(), 40, 64, "none", "canonical", None)
    assert gpu.launches == []


def test_the_layout_of_the_cpu_is_refused(gpu):
    packed = weight(4, 64, F32)
    with pytest.raises(RuntimeError, match="layout canonical, got cpu"):
        gpu.call(
            "bitmask_linear",
            torch.zeros(2, 64),
            *packed.tensors().values(),
            None,
            4,
            64,
            "none",
            "cpu",
        )


@pytest.mark.parametrize("stored", [F32, F16, torch.int8], ids=str)
@pytest.mark.parametrize("density", [0.1, 0.5])
def test_the_weight_is_read_once(gpu, stored, density):
    """8 rows of 2048: the sectors that the values of each row touch, once, and no more for bits and x."""
    packed = weight(8, 2048, stored, density)
    dtype = F16 if stored == torch.int8 else stored
    x = tokens_of(1, 2048, dtype)
    assert_right(call(gpu, x, packed), x, packed)
    ends = (packed.row_ptr * packed.values.element_size()).tolist()
    values = sum((end - 1) // 32 - begin // 32 + 1 for begin, end in pairwise(ends))
    of_rows = 5  # four rows a warp are asked for together
    of_scale = 0 if packed.scale is None else 2  # likewise
    others = (packed.bits.nbytes + x.nbytes) // 32 + of_rows + of_scale
    stats = gpu.stats
    one_by_one = (
        16 // packed.values.element_size()
    )  # the last 16 bytes, where the tensor ends inside
    assert 0 <= stats["global.load.sectors"] - values - others < one_by_one
    assert values <= packed.values.nbytes / 32 + 8 + 1
