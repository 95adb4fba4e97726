"""``block_linear`` and its backward products on the GPU: against fp64, edges, empty rows, refusals, exact counts."""

from __future__ import annotations

import pytest
import torch
from torch.nn import functional as F

from evoprune_kernels.formats import BlockWeight
from evoprune_kernels.formats.block import blocks_of, rows_of
from evoprune_kernels.ops.block_linear.backward import transpose_index
from evoprune_kernels.ops.block_pack.cases import block_mask
from tests.ops.linears import ACTIVATE
from tests.simulated import Gpu
from tests.tolerance import assert_accurate

F16, BF16, F32 = torch.float16, torch.bfloat16, torch.float32
#: cudaDevAttrMultiProcessorCount
PROCESSORS = 16
EDGES = (16, 32, 64, 128)


@pytest.fixture(autouse=True)
def one_processor(gpu):
    """The simulated GPU has one processor here, so that the widest tile is taken for small problems too."""
    if not isinstance(gpu, Gpu):
        yield
        return
    kept, gpu.attributes[PROCESSORS] = gpu.attributes[PROCESSORS], 1
    yield
    gpu.attributes[PROCESSORS] = kept


def rounded(t):
    """float32 as the tensor cores take it (tf32); other dtypes as they are."""
    if t.dtype != F32:
        return t
    return ((t.contiguous().view(torch.int32) + 0x1000) & ~0x1FFF).view(F32)


def dense(x, weight, bias, activation, dtype):
    bias = None if bias is None else bias.to(dtype)
    return ACTIVATE[activation](F.linear(x.to(dtype), weight.to(dtype), bias))


def check_forward(y, x, packed, bias, activation="none"):
    """fp32 may be twice as far from the truth as a product of inputs that were rounded to tf32."""
    weight = packed.unpack()
    truth = dense(x, weight, bias, activation, torch.float64)
    assert_accurate(y, truth, dense(rounded(x), rounded(weight), bias, activation, x.dtype))


def inputs(tokens, shape, block, dtype, density=0.5, seed=0):
    generator = torch.Generator().manual_seed(seed)
    weight = torch.randn(shape, generator=generator).to(dtype)
    mask = block_mask(*shape, *block, density, generator)
    x = torch.randn(tokens, shape[1], generator=generator).to(dtype)
    return x, BlockWeight.pack(weight, *block, mask=mask)


def run(gpu, x, packed, bias=None, activation="none"):
    numbers = (*packed.shape, *packed.pattern.arguments(), activation, "canonical")
    return gpu.call(
        "block_linear", x, packed.values, packed.row_ptr, packed.col_idx, bias, *numbers
    )


def run_dx(gpu, grad, packed):
    bn, bk = packed.pattern.arguments()
    index = transpose_index(packed.row_ptr, packed.col_idx, -(-packed.shape[1] // bk))
    return gpu.call("block_linear_dx", grad, packed.values, *index, *packed.shape, bn, bk)


def run_dw(gpu, grad, x, packed):
    rows = rows_of(packed.row_ptr, packed.values.shape[0]).int()
    return gpu.call("block_linear_dw", grad, x, rows, packed.col_idx, *packed.pattern.arguments())


def check_dx(dx, grad, packed):
    weight = packed.unpack()
    same = (rounded(grad) @ rounded(weight)).to(grad.dtype)
    assert_accurate(dx, grad.double() @ weight.double(), same)


def check_dw(dw, grad, x, packed):
    bn, bk = packed.pattern.arguments()
    where = rows_of(packed.row_ptr, dw.shape[0]), packed.col_idx.long()
    truth, same = (
        blocks_of(g.reshape(-1, g.shape[-1]).t() @ v.reshape(-1, v.shape[-1]), bn, bk)[where]
        for g, v in ((grad.double(), x.double()), (rounded(grad), rounded(x)))
    )
    assert_accurate(dw, truth, same)


CASES = [
    # tokens, (N, K), (bn, bk), dtype, bias, activation
    *[(17, (e, 3 * e), (e, e), t, None, "none") for e in EDGES for t in (F16, F32)],
    *[(t, (48, 80), (16, 16), F16, F32, "none") for t in (1, 2, 15, 16, 128, 129)],
    *[(t, (64, 128), (64, 64), BF16, F32, "relu") for t in (1, 16, 130)],
    *[(t, (32, 96), (32, 32), F32, F32, "none") for t in (1, 16)],
    *[(20, (24, 40), b, BF16, BF16, "none") for b in ((16, 64), (64, 16), (128, 32), (32, 128))],
    *[(17, (37, 45), (e, e), t, t, "silu") for e in (16, 64) for t in (F16, F32)],  # odd rows
    *[(18, (40, 56), (e, e), t, F32, "none") for e in (16, 32) for t in (BF16, F32)],  # cut blocks
    *[(3, (33, 21), (16, 16), t, F32, "gelu") for t in (F16, BF16, F32)],
    *[(5, (32, 48), (16, 16), F16, b, a) for a in ACTIVATE for b in (F32, F16, BF16)],
]


def case_id(case):
    tokens, shape, block, dtype, bias, activation = case
    numbers = "-".join("x".join(map(str, size)) for size in ((tokens, *shape), block))
    return f"{numbers}-{str(dtype)[6:]}-{bias and str(bias)[6:]}-{activation}"


@pytest.mark.parametrize("case", CASES, ids=case_id)
def test_forward(gpu, case):
    tokens, shape, block, dtype, bias, activation = case
    x, packed = inputs(tokens, shape, block, dtype)
    b = None if bias is None else torch.linspace(-1, 1, shape[0]).to(bias)
    check_forward(run(gpu, x, packed, b, activation), x, packed, b, activation)


BACKWARD = [
    # tokens, (N, K), (bn, bk), dtype
    *[(70, (e, 2 * e), (e, e), t) for e in EDGES for t in (F16, F32)],
    (33, (48, 32), (16, 16), BF16),
    (129, (32, 48), (16, 16), BF16),
    *[(20, (70, 90), b, BF16) for b in ((16, 64), (64, 16), (128, 32), (32, 128))],
    *[(t, (37, 45), (16, 16), d) for t in (1, 65) for d in (F16, F32)],
    (300, (64, 40), (32, 32), F16),
]


@pytest.mark.parametrize("tokens, shape, block, dtype", BACKWARD, ids=str)
def test_backward(gpu, tokens, shape, block, dtype):
    x, packed = inputs(tokens, shape, block, dtype)
    grad = torch.randn(tokens, shape[0], generator=torch.Generator().manual_seed(1)).to(dtype)
    check_dx(run_dx(gpu, grad, packed), grad, packed)
    dw = run_dw(gpu, grad, x, packed)
    check_dw(dw, grad, x, packed)
    BlockWeight(dw, packed.row_ptr, packed.col_idx, shape).validate()  # its padding is 0


def test_tiles(gpu):
    """As many outputs as the block has, fewer where that leaves processors idle, 16 for few tokens."""
    chosen = []
    for tokens, processors in ((17, 1), (17, 2), (17, 3), (17, 108), (16, 1)):
        gpu.attributes[PROCESSORS] = processors
        x, packed = inputs(tokens, (128, 16), (128, 16), F16, density=1.0)
        check_forward(run(gpu, x, packed), x, packed, None)
        name = gpu.launches[0].name
        chosen.append(int(name[name.index("Li") + 2]))
    assert chosen == [4, 3, 2, 2, 0]


def test_two_runs_are_equal(gpu):
    x, packed = inputs(5, (32, 48), (16, 16), F16)
    grad = x[:, :32].contiguous()
    for call in CALLS.values():
        assert torch.equal(call(gpu, packed, x, grad), call(gpu, packed, x, grad))


def test_empty_rows_give_the_bias(gpu):
    x, packed = inputs(3, (64, 96), (16, 16), F16, density=0.1)
    bias = torch.arange(64.0)
    empty = packed.row_ptr.diff() == 0
    assert empty.any() and not empty.all()
    y = run(gpu, x, packed, bias, "relu")
    check_forward(y, x, packed, bias, "relu")
    rows = empty.repeat_interleave(16)
    assert torch.equal(y[:, rows], bias[rows].to(F16).expand(3, -1))


@pytest.mark.parametrize("tokens", [3, 20])
def test_no_blocks_at_all(gpu, tokens):
    x, _ = inputs(tokens, (32, 48), (16, 16), F16)
    none = BlockWeight.pack(torch.zeros(32, 48, dtype=F16), 16, 16)
    bias = torch.arange(32.0)
    assert torch.equal(run(gpu, x, none, bias), bias.to(F16).expand(tokens, 32))
    assert torch.equal(run_dx(gpu, torch.ones(tokens, 32, dtype=F16), none), torch.zeros_like(x))
    assert run_dw(gpu, torch.ones(tokens, 32, dtype=F16), x, none).shape == (0, 16, 16)


def test_no_tokens_rows_or_columns(gpu):
    for tokens, shape in ((0, (32, 48)), (3, (0, 48)), (3, (32, 0))):
        x, packed = inputs(tokens, shape, (16, 16), F16)
        y = run(gpu, x, packed)
        assert torch.equal(y, torch.zeros(tokens, shape[0], dtype=F16))
        grad = torch.zeros(tokens, shape[0], dtype=F16)
        assert run_dx(gpu, grad, packed).shape == x.shape
        dw = run_dw(gpu, grad, x, packed)
        assert torch.equal(dw, torch.zeros_like(packed.values))


def test_shapes_of_x(gpu):
    x, packed = inputs(6, (32, 48), (16, 16), BF16)
    y = run(gpu, x, packed)
    assert torch.equal(run(gpu, x.view(2, 3, 48), packed), y.view(2, 3, 32))
    assert torch.equal(run(gpu, x[0], packed), y[0])
    assert torch.equal(run(gpu, x.t().contiguous().t(), packed), y)


def test_unaligned_tensors(gpu):
    x, packed = inputs(6, (32, 48), (16, 16), F16)
    moved = [torch.cat([t.new_zeros(3), t.flatten()])[3:].view(t.shape) for t in (x, packed.values)]
    assert all(t.data_ptr() % 16 for t in moved)
    other = BlockWeight(moved[1], packed.row_ptr, packed.col_idx, packed.shape)
    assert torch.equal(run(gpu, moved[0], other), run(gpu, x, packed))
    assert torch.equal(run_dx(gpu, moved[0][:, :32], other), run_dx(gpu, x[:, :32], packed))


@pytest.mark.parametrize("tokens", [4, 20])
def test_nan_and_infinity_reach_only_their_outputs(gpu, tokens):
    """A kept block spreads them as the dense product does; a removed one does not read x at all."""
    x, packed = inputs(tokens, (64, 61), (16, 16), F32)
    x[:] = 1
    x[0, 3], x[-1, 60] = float("nan"), float("inf")
    packed.values[5] = float("inf")
    y = run(gpu, x, packed)
    for block_row in range(4):
        blocks = slice(int(packed.row_ptr[block_row]), int(packed.row_ptr[block_row + 1]))
        reached = set(packed.col_idx[blocks].tolist())
        rows = y[:, 16 * block_row : 16 * block_row + 16].isfinite().all(1)
        infinite = blocks.start <= 5 < blocks.stop
        assert rows[0] == (0 not in reached and not infinite)
        assert rows[-1] == (3 not in reached and not infinite)
        assert rows[1:-1].all() == (not infinite)


def changed(**changes):
    """The arguments of the op with some changed."""
    x, packed = inputs(3, (32, 48), (16, 16), F16)
    arguments = {
        "x": x, **packed.tensors(), "bias": None, "out_features": 32, "in_features": 48,
        "bn": 16, "bk": 16, "activation": "none", "layout": "canonical", "scale": None, **changes,
    }  # fmt: skip
    return tuple(arguments.values())


@pytest.mark.parametrize(
    "changes, message",
    [
        ({"bn": 8, "bk": 24}, "edges of 16, 32, 64 and 128, got 8x24"),
        ({"bk": 32}, r"values.size\(2\) = 32, got 16"),
        ({"x": torch.zeros(3, 47).half()}, r"x.size\(-1\) = 48, got 47"),
        ({"x": torch.tensor(1.0).half()}, "x of 1 dimension or more, got 0"),
        ({"x": torch.zeros(3, 48)}, "dtype of x, Float, got Half"),
        ({"x": torch.zeros(3, 48).double()}, "x has dtype Double, expected Float, Half"),
        ({"layout": "cpu"}, "layout canonical, got cpu"),
        ({"scale": torch.ones(32)}, "takes no scale, got one of 32"),
        ({"bias": torch.ones(31)}, r"bias.size\(0\) = 32, got 31"),
        ({"bias": torch.ones(32).int()}, "bias has dtype Int"),
        ({"activation": "tanh"}, "or silu, got tanh"),
        ({"row_ptr": torch.zeros(2).int()}, "row_ptr of 3 entries, got 2"),
        ({"row_ptr": torch.zeros(3).long()}, "row_ptr has dtype Long, expected Int"),
        ({"col_idx": torch.zeros(1).int()}, "col_idx of . entries, got 1"),
    ],
)
def test_bad_input_launches_nothing(gpu, changes, message):
    with pytest.raises(RuntimeError, match=message):
        gpu.call("block_linear", *changed(**changes))
    assert gpu.launches == []


def test_bad_input_of_backward_launches_nothing(gpu):
    x, packed = inputs(3, (32, 48), (16, 16), F16)
    grad, rows = torch.zeros(3, 32).half(), torch.zeros(2).int()
    with pytest.raises(RuntimeError, match="expected x of 3 tokens, got 2"):
        gpu.call("block_linear_dw", grad, x[:2], rows, rows, 16, 16)
    with pytest.raises(RuntimeError, match="col_idx of 2 entries, got 1"):
        gpu.call("block_linear_dw", grad, x, rows, rows[:1], 16, 16)
    with pytest.raises(RuntimeError, match="got 16x8"):
        gpu.call("block_linear_dw", grad, x, rows, rows, 16, 8)
    index = transpose_index(packed.row_ptr, packed.col_idx, 3)
    with pytest.raises(RuntimeError, match=r"grad.size\(-1\) = 32, got 48"):
        gpu.call("block_linear_dx", x, packed.values, *index, 32, 48, 16, 16)
    with pytest.raises(RuntimeError, match=r"order of . entries, got 1"):
        gpu.call("block_linear_dx", grad, packed.values, *index[:2], rows[:1], 32, 48, 16, 16)
    assert gpu.launches == []


# ---- dW of few blocks and many tokens: split over the tokens ----
MANY = 108  # processors of an A100
SPLIT = [
    # tokens, (N, K), (bn, bk), dtype, processors, splits
    (1536, (64, 64), (64, 64), F16, MANY, 3),
    (1537, (64, 40), (64, 64), BF16, MANY, 3),  # a last step of one token, a cut block
    (800, (128, 128), (128, 128), F32, MANY, 3),
    (1600, (48, 150), (16, 128), F32, MANY, 1),  # tiles of 16: 4 steps a round, too few rounds
    (6500, (24, 16), (16, 16), F16, MANY, 3),
    (3300, (32, 72), (32, 64), F32, MANY, 3),  # two tiles a block
    (2048, (64, 64), (64, 64), F16, 3, 3),  # as many parts as processors
    (1536, (64, 128), (64, 64), F16, 2, 1),  # a tile for every processor
    (5, (64, 64), (64, 64), F16, MANY, 1),  # fewer tokens than a part has
    (1, (16, 16), (16, 16), F32, MANY, 1),
]


def act_as(gpu, processors):
    """Act as a device with so many processors, until the test ends."""
    if isinstance(gpu, Gpu):
        gpu.attributes[PROCESSORS] = processors


@pytest.mark.parametrize("tokens, shape, block, dtype, processors, splits", SPLIT, ids=str)
def test_split_dw(gpu, tokens, shape, block, dtype, processors, splits):
    act_as(gpu, processors)
    x, packed = inputs(tokens, shape, block, dtype, density=1.0)
    grad = torch.randn(tokens, shape[0], generator=torch.Generator().manual_seed(1)).to(dtype)
    dw = run_dw(gpu, grad, x, packed)
    check_dw(dw, grad, x, packed)
    BlockWeight(dw, packed.row_ptr, packed.col_idx, shape).validate()  # its padding is 0
    assert torch.equal(dw, run_dw(gpu, grad, x, packed))
    if isinstance(gpu, Gpu):
        assert gpu.launches[0].grid[1] == splits
        assert [("add_parts" in name) for name, _ in gpu.launches] == [False, True][
            : 1 + (splits > 1)
        ]


def test_split_dw_keeps_nan_and_infinity_in_their_columns(gpu):
    act_as(gpu, MANY)
    x, packed = inputs(1600, (64, 128), (64, 64), F16, density=1.0)
    grad = torch.randn(1600, 64, generator=torch.Generator().manual_seed(1)).half()
    expected = run_dw(gpu, grad, x, packed)
    x[3, 5], x[1599, 70] = torch.nan, torch.inf  # of the first part and of the last
    dw = run_dw(gpu, grad, x, packed).transpose(0, 1).reshape(64, 128)
    reached = torch.zeros(128, dtype=torch.bool)
    reached[[5, 70]] = True
    assert not dw[:, reached].isfinite().any()
    assert torch.equal(dw[:, ~reached], expected.transpose(0, 1).reshape(64, 128)[:, ~reached])


# ---- exact counts: 256 tokens, N = 64, K = 512 or 1024, all blocks of 64x64 kept, float16 ----
def counts(gpu, call, columns):
    packed = BlockWeight.pack(torch.ones(64, columns, dtype=F16), 64, 64)
    call(gpu, packed, torch.ones(256, columns, dtype=F16), torch.ones(256, 64, dtype=F16))
    return gpu.stats


CALLS = {
    "forward": lambda gpu, packed, x, grad: run(gpu, x, packed),
    "dx": lambda gpu, packed, x, grad: run_dx(gpu, grad, packed),
    "dw": lambda gpu, packed, x, grad: run_dw(gpu, grad, x, packed),
}


@pytest.mark.parametrize("name", CALLS)
def test_no_sector_and_no_bank_twice(gpu, name):
    stats = counts(gpu, CALLS[name], 512)
    assert stats["global.store.sectors"] * 32 == stats["global.store.bytes"]
    for kind in ("copy", "load", "store"):
        assert stats[f"shared.{kind}.wavefronts"] == stats[f"shared.{kind}.ideal"] > 0
    # besides the copies only indices are read, one or two sectors a request
    indices = stats["global.load.requests"] - stats["shared.copy.bytes"] // 512
    assert 0 <= stats["global.load.sectors"] - stats["shared.copy.bytes"] // 32 <= 2 * indices


def test_instructions_of_a_step(gpu):
    """PTX instructions a warp for each mma, between K = 512 and K = 1024: what the header states."""
    few, many = (counts(gpu, CALLS["forward"], columns) for columns in (512, 1024))
    mma = [sum(n for key, n in s.items() if key.startswith("inst.mma")) for s in (few, many)]
    assert mma[1] - mma[0] == 256 * 64 * 512 // (16 * 8 * 16)
    assert (many["inst"] - few["inst"]) / (mma[1] - mma[0]) <= 3.3
