"""``nm_linear`` for few tokens on the simulated GPU: every 2:4 case, tails, dtypes, non-finite numbers, and counts."""

from __future__ import annotations

import pytest
import torch
from torch.nn import functional as F

from evoprune_kernels import ops
from evoprune_kernels.formats import NMWeight
from evoprune_kernels.ops._linear import activate
from evoprune_kernels.ops.nm_linear.cases import CASES
from evoprune_kernels.ops.nm_pack.cases import random_weight
from tests.tolerance import assert_accurate

F32, F16, BF16 = torch.float32, torch.float16, torch.bfloat16
KERNEL = "nm_linear_few_kernel"
FEW = 16  # tokens of a block


def is_2_of_4(case):
    return "-2:4" in case.name


def call(gpu, x, packed, bias=None, activation="none"):
    values, meta = ops.nm_prepare_cuda(packed)
    rest = (*packed.shape, *packed.pattern.arguments(), activation, "cuda", packed.scale)
    return gpu.call("nm_linear", x, values, meta, bias, *rest)


def oracle(x, packed, bias, activation, dtype):
    """The dense product in ``dtype``."""
    bias = None if bias is None else bias.to(dtype)
    weight = packed.unpack().to(dtype)
    return activate(F.linear(x.to(dtype), weight, bias), activation)


def assert_right(y, x, packed, bias=None, activation="none"):
    truth = oracle(x, packed, bias, activation, torch.float64)
    assert_accurate(y, truth, oracle(x, packed, bias, activation, x.dtype))


def weight_2_of_4(rows, columns, dtype, seed=0):
    weight, mask = random_weight(torch.Generator().manual_seed(seed), rows, columns, 2, 4)
    if dtype == torch.int8:
        return NMWeight.pack(weight, 2, 4, mask=mask).quantize()
    return NMWeight.pack(weight.to(dtype), 2, 4, mask=mask)


def tokens_of(count, columns, dtype, seed=1):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(count, columns, generator=generator).to(dtype)


@pytest.mark.parametrize("case", [c for c in CASES if is_2_of_4(c)], ids=lambda case: case.name)
def test_matches_the_dense_product(gpu, case):
    x, packed, bias, activation = case.args()
    if x.dtype != F32 and x.numel() // max(x.shape[-1], 1) > FEW:
        pytest.skip("many tokens of 16 bits: nm_linear.cu")
    y = call(gpu, x, packed, bias, activation)
    assert_right(y, x, packed, bias, activation)
    assert all(KERNEL in name for name, _ in gpu.launches)
    assert len(gpu.launches) == (1 if y.numel() else 0)


@pytest.mark.parametrize("stored", [F32, F16, BF16, torch.int8], ids=str)
@pytest.mark.parametrize("tokens", [1, 3, 7, 16])
def test_dtypes_and_token_counts(gpu, stored, tokens):
    packed = weight_2_of_4(70, 203, stored)
    for dtype in (F32, F16, BF16) if stored == torch.int8 else (stored,):
        x = tokens_of(tokens, 203, dtype)
        bias = tokens_of(1, 70, F16)[0]
        assert_right(call(gpu, x, packed, bias, "relu"), x, packed, bias, "relu")


@pytest.mark.parametrize("stored, dtype", [(F32, F32), (torch.int8, BF16)], ids=str)
@pytest.mark.parametrize("tokens", [17, 33])
def test_more_tokens_are_more_blocks(gpu, stored, dtype, tokens):
    packed = weight_2_of_4(65, 72, stored)
    x = tokens_of(tokens, 72, dtype)
    y = call(gpu, x, packed)
    assert_right(y, x, packed)
    assert len(gpu.launches) == 1
    single = call(gpu, x[:FEW], packed)
    assert torch.equal(y[:FEW], single)


@pytest.mark.parametrize("dtype", [F32, BF16], ids=str)
@pytest.mark.parametrize("offset, columns", [(1, 64), (0, 67), (3, 70)])
def test_x_that_is_not_aligned(gpu, dtype, offset, columns):
    packed = weight_2_of_4(8, columns, dtype)
    memory = torch.full((offset + 3 * columns,), float("nan"), dtype=dtype)
    x = memory[offset:].view(3, columns)
    x.copy_(tokens_of(3, columns, dtype))
    y = call(gpu, x, packed)
    assert_right(y, x, packed)
    assert torch.equal(y, call(gpu, x.clone(), packed))
    assert_right(call(gpu, x[1], packed), x[1], packed)


def test_a_weight_that_is_not_aligned(gpu):
    packed = weight_2_of_4(8, 64, F32)
    x = tokens_of(1, 64, F32)
    values, meta = (
        torch.cat((t.flatten()[:1], t.flatten()))[1:].view(t.shape)
        for t in ops.nm_prepare_cuda(packed)
    )
    y = gpu.call("nm_linear", x, values, meta, None, 8, 64, 2, 4, 1, "none", "cuda", None)
    assert_right(y, x, packed)


def test_long_rows_take_more_than_one_chunk_of_x(gpu):
    columns = 2048 + 70  # 8 tokens of float fill shared memory with 1024 columns
    packed = weight_2_of_4(17, columns, F32)
    x = tokens_of(5, columns, F32)
    y = call(gpu, x, packed)
    assert_right(y, x, packed)
    assert torch.equal(y, call(gpu, x, packed))


def test_a_stored_place_takes_part_and_no_other(gpu):
    inf, nan = float("inf"), float("nan")
    weight = torch.zeros(4, 8)
    weight[0, 1], weight[0, 2] = inf, 1.0
    weight[1, 4], weight[1, 7] = nan, 1.0
    weight[2, 0], weight[2, 3] = 2.0, -0.0  # -0.0 is stored as +0.0
    mask = torch.zeros(4, 8, dtype=torch.bool)
    mask[0, 1:3] = mask[1, 4::3] = mask[2, 0] = mask[2, 3] = True
    mask[0, 4:6] = mask[1, :2] = mask[2, 4:6] = mask[3, 2:4] = mask[3, 6:8] = True
    packed = NMWeight.pack(weight, 2, 4, mask=mask)
    for tokens in (1, 3, 8):
        x = torch.ones(tokens, 8)
        x[:, 2], x[0, 6] = 3.0, nan
        y = call(gpu, x, packed)
        assert torch.equal(y[:, 0], torch.full((tokens,), inf))
        assert y[:, 1].isnan().all()
        assert torch.equal(y[:, 2], torch.full((tokens,), 2.0))
        assert y[0, 3].isnan() and torch.equal(y[1:, 3], torch.zeros(tokens - 1))


def test_padding_is_not_read_as_x(gpu):
    """K = 3: the last group is stored with indices 0 and 1, or up to 3; x ends before."""
    packed = NMWeight.pack(torch.tensor([[0.0, 2.0, 3.0]]), 2, 4)
    memory = torch.full((8,), float("nan"))
    memory[:3] = torch.tensor([5.0, 7.0, 11.0])
    assert call(gpu, memory[:3], packed).tolist() == [47.0]


@pytest.mark.parametrize(
    "change, message",
    [
        ({"x": torch.zeros(2, 63)}, r"x\.size\(-1\) = 64, got 63"),
        ({"values": torch.zeros(64, 31)}, r"values\.size\(1\) = 32, got 31"),
        ({"values": torch.zeros(64, 32, dtype=F16)}, "values has dtype Half"),
        ({"meta": torch.zeros(64, dtype=torch.int32)}, "meta of 128 words, got 64"),
        ({"values": torch.zeros(64, 32, dtype=torch.int8)}, "expected a scale"),
        ({"bias": torch.zeros(7)}, r"bias\.size\(0\) = 40, got 7"),
    ],
)
def test_bad_input_launches_nothing(gpu, change, message):
    values, meta = ops.nm_prepare_cuda(weight_2_of_4(40, 64, F32))
    given = {"x": torch.zeros(2, 64), "values": values, "meta": meta, "bias": None} | change
    with pytest.raises(RuntimeError, match=message):
        gpu.call("nm_linear", *given.values(), 40, 64, 2, 4, 1, "none", "cuda", None)
    assert gpu.launches == []


@pytest.fixture
def one_processor(gpu):
    """A device so small that every block takes 64 rows."""
    before = gpu.attributes[16]
    gpu.attributes[16] = 1
    yield
    gpu.attributes[16] = before


@pytest.mark.parametrize("stored", [F32, F16, torch.int8], ids=str)
@pytest.mark.parametrize("tokens", [1, 4, 8, 16])
def test_the_weight_is_read_once(gpu, one_processor, stored, tokens):
    """N = 128, K = 256: whole sectors, each once, and no bank conflict whatever the indices are."""
    packed = weight_2_of_4(128, 256, stored)
    dtype = F16 if stored == torch.int8 else stored
    x = tokens_of(tokens, 256, dtype)
    assert_right(call(gpu, x, packed), x, packed)
    values, meta = ops.nm_prepare_cuda(packed)
    weight = values.nbytes + meta.nbytes
    scale = 0 if packed.scale is None else packed.scale.nbytes
    per_block = 8 if dtype == F32 else 16
    blocks = 2 * -(-tokens // per_block)
    stats = gpu.stats
    assert stats["global.load.bytes"] == weight * blocks // 2 + 2 * x.nbytes + tokens * scale
    x_sectors = 2 * x.nbytes // 32 + tokens * scale // 32
    assert stats["global.load.sectors"] == weight * blocks // 2 // 32 + x_sectors
    assert stats["global.load.footprint"] == weight + x.nbytes + scale
    assert stats["shared.load.wavefronts"] == stats["shared.load.ideal"]
    assert stats["shared.store.wavefronts"] == stats["shared.store.ideal"]


def test_small_layers_take_32_rows_a_block(gpu):
    """Twice the blocks where 64 rows each would leave multiprocessors idle: values once, meta twice."""
    packed = weight_2_of_4(128, 256, F16)
    x = tokens_of(1, 256, F16)
    values, meta = ops.nm_prepare_cuda(packed)
    call(gpu, x, packed)
    expected = values.nbytes + 2 * meta.nbytes + 4 * x.nbytes
    assert gpu.stats["global.load.bytes"] == expected
    assert gpu.stats["global.load.sectors"] == expected // 32
