"""w8a8_linear: an oracle in numpy integers, the same bits at every ISA level and thread count, special values."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
import torch
from torch.nn import functional as F

from evoprune_kernels import _ext, formats, ops
from evoprune_kernels.ops.w8a8_linear.cases import CASES, PATTERNS, random_mask
from evoprune_kernels.ops.w8a8_linear.reference import quantize_tokens
from evoprune_kernels.ops.w8a8_prepare.reference import unprepare
from tests.ops.linears import ACTIVATE
from tests.tolerance import assert_accurate

EXACT = ("none", "relu")  # the other activations use exp, whose last bits are the level's


@pytest.fixture(params=["avx512vnni", "avx512", "avx2", "baseline"])
def isa(request):
    """As that of conftest.py, with the level whose integer kernels are its own."""
    if request.param not in _ext.isa_levels():
        pytest.skip(f"ISA level {request.param} does not run here")
    level = _ext.isa_level()
    _ext.set_isa_level(request.param)
    yield request.param
    _ext.set_isa_level(level)


def call(x, packed, bias=None, activation="none", impl=None):
    rest = (*packed.shape, ops.w8a8_picks(packed.pattern), activation, packed.scale)
    return ops.w8a8_linear.OP(x, *ops.w8a8_prepare(packed), bias, *rest, impl=impl)


def oracle(x, packed, bias, activation):
    """float64 [tokens, N], from integers that numpy rounds and multiplies, row by row of the dense weight."""
    rows = x.float().numpy().reshape(x.shape[:-1].numel(), packed.shape[1])
    dense = dataclasses.replace(packed, scale=torch.ones(packed.shape[0])).unpack()
    weight = dense.numpy().astype(np.int64)
    y = np.zeros((rows.shape[0], packed.shape[0]))
    for t, row in enumerate(rows):
        step = np.float32(np.abs(row).max(initial=0)) / np.float32(127)
        inverse = np.float32(1) / step if step > 0 else np.float32(0)
        q = np.rint(row * inverse).astype(np.int64)
        y[t] = (weight @ q) * np.float64(step) * packed.scale.double().numpy()
    z = torch.from_numpy(y).view(*x.shape[:-1], packed.shape[0])
    return ACTIVATE[activation](z if bias is None else z + bias.double())


def small(pattern, tokens=5, rows=33, columns=61, seed=0):
    generator = torch.Generator().manual_seed(seed)
    parsed = formats.parse_pattern(pattern)
    mask = random_mask(parsed, (rows, columns), 0.5, generator)
    weight = torch.randn(rows, columns, generator=generator)
    packed = formats.pack(weight, parsed, mask).quantize()
    bias = torch.randn(rows, generator=generator)
    return torch.randn(tokens, columns, generator=generator), packed, bias


def test_literal():
    """q = [127, -64, 2] and [0, 0, 0] (64 and 2 are ties: half to even), w = [127, -127, 64] (63.5 as well)."""
    weight = torch.zeros(16, 16)
    weight[0, :3] = torch.tensor([2.0, -2.0, 1.0])
    packed = formats.pack(weight, "block:16x16").quantize()
    x = torch.zeros(2, 16)
    x[0, :3] = torch.tensor([254.0, -127.0, 3.0])
    y = call(x, packed, torch.full((16,), 0.5))
    scale = torch.tensor(2.0) / 127
    expected = torch.tensor(127.0 * 127 + 64 * 127 + 2 * 64) * 2 * scale + 0.5
    assert y[0, 0] == expected and (y[0, 1:] == 0.5).all() and (y[1] == 0.5).all()


@pytest.mark.parametrize("case", CASES, ids=lambda c: c.name)
def test_matches_the_integer_oracle(case, isa, threads):
    x, packed, bias, activation = case.args()
    y = call(x, packed, bias, activation)
    truth = oracle(x, packed, bias, activation)
    assert_accurate(y, truth, truth.to(x.dtype))
    assert y.is_contiguous()
    reference = call(x, packed, bias, activation, impl="reference")
    assert_accurate(reference, truth, truth.to(x.dtype))
    if activation in EXACT:
        assert torch.equal(y, reference)


@pytest.mark.parametrize("pattern", PATTERNS)
def test_sums_are_the_same_bits_everywhere(pattern):
    """Unit scales of the rows and tokens whose scale is 1: the outputs are the integer sums."""
    for tokens in (1, 2, 3, 4, 5, 8, 16, 19, 70):
        x, packed, _ = small(pattern, tokens, 50, 300)
        x = torch.randint(-127, 128, x.shape).float()
        x[:, 0] = 127.0
        packed = dataclasses.replace(packed, scale=torch.ones(50))
        expected = x.long() @ packed.unpack().long().t()
        before = torch.get_num_threads(), _ext.isa_level()
        for level in _ext.isa_levels():
            for threads in (1, 2, 3):
                _ext.set_isa_level(level)
                torch.set_num_threads(threads)
                assert torch.equal(call(x, packed).long(), expected), (level, threads, tokens)
        torch.set_num_threads(before[0])
        _ext.set_isa_level(before[1])


@pytest.mark.parametrize("pattern", PATTERNS)
@pytest.mark.parametrize("sign", [1.0, -1.0])
def test_the_largest_products_do_not_saturate(pattern, sign, isa):
    _, packed, _ = small(pattern, rows=32, columns=512)
    values = torch.where(packed.values != 0, 127, 0).to(torch.int8)
    packed = dataclasses.replace(packed, values=values, scale=torch.ones(32))
    x = torch.full((9, 512), 127.0) * sign
    expected = packed.unpack().sum(1) * 127 * sign
    assert torch.equal(call(x, packed), expected.expand(9, -1))


def test_sums_fill_int32(isa):
    columns = ops.w8a8_prepare.__globals__["MAX_COLUMNS"]
    packed = formats.pack(torch.ones(1, columns), "block:16x16").quantize()
    y = call(torch.full((2, columns), -3.0), packed)
    assert torch.equal(y, call(torch.full((2, columns), -3.0), packed, impl="reference"))
    wide = formats.pack(torch.ones(1, columns + 1), "block:16x16").quantize()
    with pytest.raises(ValueError, match="up to 133144 columns, got 133145"):
        ops.w8a8_prepare(wide)


@pytest.mark.parametrize("pattern", ["2:4v16", "block:16x1"])
def test_columns_beyond_int16(pattern, isa):
    x, packed, bias = small(pattern, 9, 16, 70001)
    assert ops.w8a8_prepare(packed)[2].dtype == torch.int32
    assert torch.equal(call(x, packed, bias), call(x, packed, bias, impl="reference"))


@pytest.mark.parametrize("pattern", PATTERNS)
@pytest.mark.parametrize("tokens", [1, 9, 70])
def test_non_contiguous_x(tokens, pattern, isa):
    _, packed, bias = small(pattern)
    wide = torch.randn(tokens, 2 * 61)[:, ::2]
    assert torch.equal(call(wide, packed, bias), call(wide.contiguous(), packed, bias))


@pytest.mark.parametrize("pattern", PATTERNS)
@pytest.mark.parametrize("tokens", [1, 2, 9, 70])
def test_a_token_does_not_know_the_others(tokens, pattern, isa):
    x, packed, bias = small(pattern, tokens)
    x *= torch.logspace(-30, 30, tokens)[:, None]
    together = call(x, packed, bias)
    assert all(torch.equal(together[t], call(x[t], packed, bias)) for t in range(tokens))


@pytest.mark.parametrize("pattern", PATTERNS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_special_values(pattern, dtype, isa):
    """A token with NaN or infinity is NaN, one of zeros gives the bias; tiny and huge tokens are finite."""
    x, packed, bias = small(pattern, 9)
    x = x.to(dtype)
    x[1, 7], x[3, 60], x[4, 0] = torch.nan, torch.inf, -torch.inf
    x[5], x[6], x[7] = 0.0, x[6] * 1e-38, x[7] / x[7].abs().max() * 1e36
    x[2] = 0.0
    x[2, 5] = 1e-45 if dtype == torch.float32 else 1e-40
    for activation in ("none", "relu", "gelu"):
        y = call(x, packed, bias, activation)
        bad = torch.tensor([0, 1, 0, 1, 1, 0, 0, 0, 0]).bool()
        assert y[bad].isnan().all() and y[~bad].isfinite().all()
        expected = ACTIVATE[activation](bias)
        assert_accurate(y[5], expected.double(), expected.to(dtype))
        reference = call(x, packed, bias, activation, impl="reference")
        if activation in EXACT:
            assert torch.equal(y[~bad], reference[~bad]) and reference[bad].isnan().all()


@pytest.mark.parametrize("tokens", [(7,), (2, 3), ()])
def test_quantize_tokens(tokens):
    x = torch.randn(*tokens, 33)
    q, scale = quantize_tokens(x)
    assert q.dtype == torch.int8 and scale.shape == (*tokens, 1)
    assert (q.abs().amax(-1) == 127).all()
    assert ((q.double() * scale - x).abs() <= scale * (0.5 + 1e-4)).all()


@pytest.mark.parametrize("case", CASES, ids=lambda c: c.name)
def test_the_layout_holds_the_weight(case):
    packed = case.args()[1]
    prepared = ops.w8a8_prepare(packed)
    dense = dataclasses.replace(packed, scale=torch.ones(packed.shape[0])).unpack()
    back = unprepare(prepared, packed.shape, ops.w8a8_picks(packed.pattern))
    assert torch.equal(back.float(), dense)
    assert torch.equal(prepared[3][: packed.shape[0]].long(), dense.long().sum(1))
    assert not prepared[3][packed.shape[0] :].any()


@pytest.mark.parametrize("pattern", PATTERNS)
def test_public_function(pattern):
    x, packed, bias = small(pattern)
    for impl in (None, "reference"):
        y = ops.w8a8_linear(x, packed, bias, "relu", impl=impl)
        assert torch.equal(y, call(x, packed, bias, "relu"))
    truth = F.linear(x.double(), packed.unpack().double())
    error = (ops.w8a8_linear(x, packed).double() - truth).abs().max() / truth.abs().max()
    assert error < 0.02  # rounding x to 8 bits


@pytest.mark.parametrize(
    "pattern", ["block:8x8", "block:24x4", "1:4", "3:8", "4:8", "unstructured"]
)
def test_patterns_without_an_integer_kernel(pattern):
    packed = formats.pack(torch.zeros(48, 32), pattern).quantize()
    with pytest.raises(ValueError, match=f"w8a8 takes blocks .* got {pattern}"):
        ops.w8a8_linear(torch.zeros(1, 32), packed)


@pytest.mark.parametrize(
    "change, error, match",
    [
        ({"x": torch.zeros(2, 60)}, ValueError, r"x of shape \[..., 61\], got \(2, 60\)"),
        ({"x": torch.tensor(1.0)}, ValueError, "1 dimension or more"),
        ({"x": torch.zeros(2, 61).double()}, TypeError, "got torch.float64"),
        ({"bias": torch.zeros(32)}, ValueError, r"bias of shape \(33,\), got \(32,\)"),
        ({"activation": "tanh"}, ValueError, "got 'tanh'"),
    ],
)
def test_refusals(change, error, match):
    x, packed, bias = small("block:16x16")
    arguments = {"x": x, "packed": packed, "bias": bias, "activation": "none", **change}
    with pytest.raises(error, match=match):
        ops.w8a8_linear(**arguments)
    with pytest.raises(ValueError, match="quantize"):
        ops.w8a8_linear(x, formats.pack(packed.unpack(), "block:16x16"))


def test_it_has_no_gradient():
    x, packed, bias = small("2:4")
    with pytest.raises(RuntimeError, match="for inference"):
        call(x.requires_grad_(), packed, bias)
    with torch.no_grad():
        call(x, packed, bias)


def prepared_arguments(pattern, activation="none"):
    x, packed, bias = small(pattern)
    picks = ops.w8a8_picks(packed.pattern)
    return [
        x,
        *ops.w8a8_prepare(packed),
        bias,
        *packed.shape,
        picks,
        activation,
        packed.scale,
    ]


@pytest.mark.parametrize("pattern", PATTERNS)
def test_opcheck(pattern):
    arguments = prepared_arguments(pattern, "gelu")
    torch.library.opcheck(torch.ops.evoprune.w8a8_linear.default, tuple(arguments))


@pytest.mark.parametrize("pattern", PATTERNS)
def test_compiles_without_a_break(pattern):
    x, *rest = prepared_arguments(pattern, "relu")
    op = torch.ops.evoprune.w8a8_linear.default
    compiled = torch.compile(lambda x: op(x, *rest), fullgraph=True, backend="aot_eager")
    assert torch.equal(compiled(x), op(x, *rest))


def poke(index, at, value):
    """Changes one entry of one argument."""

    def change(arguments):
        arguments[index] = arguments[index].clone()
        arguments[index].view(-1)[at] = value

    return change


def put(index, make):
    """Puts another value in the place of one argument."""

    def change(arguments):
        arguments[index] = make(arguments[index])

    return change


CORRUPT = [
    ("block:16x16", poke(3, 0, 64), "columns within 0 to 48, got 0 to 64"),
    ("block:16x16", poke(3, 0, -16), "columns within 0 to 48, got -16"),
    ("block:16x1", poke(3, 0, 61), "columns within 0 to 60, got 0 to 61"),
    ("2:4v16", poke(3, 0, -1), "columns within 0 to 60, got 0 to 65535"),
    ("2:4v16", put(3, lambda t: t.int() - 1), "columns within 0 to 60, got -1"),
    ("2:4", poke(2, 1, 4), r"row_ptr\[1\]: expected 8, got 4"),
    ("2:4", put(3, lambda t: t[:-1]), r"columns.size\(0\) = 6, got 5"),
    ("2:4", put(3, lambda t: t.short()), "columns has dtype Short, expected Int"),
    ("block:16x16", poke(2, 1, 99), "row_ptr must rise from 0"),
    ("block:16x16", put(2, lambda t: t[:-1]), r"row_ptr.size\(0\) = 4, got 3"),
    ("block:16x16", put(1, lambda t: t.float()), "values has dtype Float, expected Char"),
    ("block:16x16", put(1, lambda t: t[:-1]), "row_ptr must rise from 0"),
    ("2:4", put(1, lambda t: t.flatten(1)), r"prepared values \[entries, lines, 16, 4\], got 2"),
    ("2:4", put(4, lambda t: t[:-1]), r"row_sums.size\(0\) = 48, got 47"),
    ("2:4", put(8, lambda _: "lane"), "picks run, strip or row, got lane"),
    ("2:4", put(9, lambda _: "tanh"), "got tanh"),
    ("2:4", put(10, lambda t: t[1:]), "scale of 33 entries, got 32"),
    ("2:4", put(0, lambda t: t[:, 1:]), "in_features = 61, got 60"),
    ("2:4", put(0, lambda t: t.double()), "x has dtype Double"),
]


@pytest.mark.parametrize("pattern, change, match", CORRUPT)
def test_corrupt_tensors_are_refused_by_the_kernel(pattern, change, match):
    arguments = prepared_arguments(pattern)
    change(arguments)
    with pytest.raises(RuntimeError, match=match):
        ops.w8a8_linear.OP(*arguments, impl="cpu")
