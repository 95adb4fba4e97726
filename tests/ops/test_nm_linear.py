"""nm_linear: an independent dense oracle in fp64, every ISA level and thread count, both layouts, gradients."""

from __future__ import annotations

import dataclasses

import pytest
import torch
from torch.nn import functional as F

from evoprune_kernels import ops
from evoprune_kernels.formats import NMWeight
from evoprune_kernels.ops.nm_linear.cases import CASES
from tests.tolerance import assert_accurate

LAYOUTS = ("canonical", "cpu")
ACTIVATE = {
    "none": lambda z: z,
    "relu": F.relu,
    "gelu": F.gelu,
    "gelu_tanh": lambda z: F.gelu(z, approximate="tanh"),
    "silu": F.silu,
}


def oracle(x, weight, bias, activation, dtype):
    """The dense product; ``weight`` is the masked dense weight."""
    bias = None if bias is None else bias.to(dtype)
    return ACTIVATE[activation](F.linear(x.to(dtype), weight.to(dtype), bias))


def call(x, packed, bias=None, activation="none", layout="cpu", impl=None):
    tensors = ops.prepare(packed) if layout == "cpu" else (packed.values, packed.meta)
    rest = (*packed.shape, *packed.pattern.arguments(), activation, layout)
    return ops.nm_linear.OP(x, *tensors, bias, *rest, impl=impl)


def small(tokens=5, rows=33, columns=61, n=2, m=4):
    weight = torch.randn(rows, columns)
    packed = ops.nm_pack(weight, n, m, ops.select_nm(weight.abs(), n, m))
    return torch.randn(tokens, columns), packed, torch.randn(rows)


def test_literal():
    packed = NMWeight.pack(torch.tensor([[0.0, 5.0, 0.0, 6.0], [1.0, 0.0, 0.0, 0.0]]), 2, 4)
    x = torch.tensor([[1.0, 2.0, 3.0, 4.0]])
    for layout in LAYOUTS:
        y = call(x, packed, torch.tensor([0.5, -2.0]), "relu", layout)
        assert y.tolist() == [[34.5, 0.0]]


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("case", CASES, ids=lambda c: c.name)
def test_matches_the_dense_product(case, layout, isa, threads):
    x, packed, bias, activation = case.args()
    weight = packed.unpack()
    truth = oracle(x, weight, bias, activation, torch.float64)
    y = call(x, packed, bias, activation, layout)
    assert_accurate(y, truth, oracle(x, weight, bias, activation, x.dtype))
    assert y.is_contiguous()


@pytest.mark.parametrize("case", CASES[:16], ids=lambda c: c.name)
def test_reference_matches_the_dense_product(case):
    x, packed, bias, activation = case.args()
    weight = packed.unpack()
    for layout in LAYOUTS:
        y = call(x, packed, bias, activation, layout, impl="reference")
        truth = oracle(x, weight, bias, activation, torch.float64)
        assert_accurate(y, truth, oracle(x, weight, bias, activation, x.dtype))


@pytest.mark.parametrize("tokens", [1, 4, 37, 70, 129])  # from 64 on also tokens in lanes
def test_threads_do_not_change_a_bit(tokens):
    x, packed, bias = small(tokens, 100, 200)
    before = torch.get_num_threads()
    results = []
    for count in (1, 2, 3):
        torch.set_num_threads(count)
        results.append(call(x, packed, bias, "gelu"))
    torch.set_num_threads(before)
    assert torch.equal(results[0], results[1]) and torch.equal(results[0], results[2])


@pytest.mark.parametrize("tokens", [1, 9])
def test_non_contiguous_and_misaligned_x(tokens, isa):
    x, packed, bias = small(tokens, 24, 64)
    expected = call(x, packed, bias)
    assert torch.equal(call(x.t().contiguous().t(), packed, bias), expected)
    wide = torch.full((tokens, 67), float("nan"))
    wide[:, 3:] = x
    assert torch.equal(call(wide[:, 3:], packed, bias), expected)
    shifted = torch.empty(x.numel() + 1)[1:].view_as(x).copy_(x)
    assert torch.equal(call(shifted, packed, bias), expected)
    assert torch.equal(call(x, packed, torch.stack([bias, bias], 1)[:, 0]), expected)


@pytest.mark.parametrize("tokens", [6, 70])  # rows in lanes; tokens in lanes and a rest
def test_special_values_stay_in_their_row_and_token(tokens, isa):
    nan, inf = float("nan"), float("inf")
    weight = torch.zeros(20, 40)
    weight[:, ::4], weight[:, 1::4] = 1.0, -2.0
    weight[3, 4], weight[5, 8], weight[6, 12] = nan, inf, -0.0
    packed = NMWeight.pack(weight, 2, 4, mask=torch.arange(40).expand(20, 40) % 4 < 2)
    x = torch.ones(tokens, 40)
    x[2, 2], x[4, 0] = nan, inf  # column 2 is kept nowhere, column 0 everywhere
    y = call(x, packed)
    expected = torch.full((tokens, 20), -10.0)
    expected[4] = inf
    expected[:, 3], expected[:, 5], expected[:, 6] = nan, inf, -11.0
    expected[4, 6] = inf
    assert torch.equal(y.nan_to_num(nan=123.0), expected.nan_to_num(nan=123.0))


@pytest.mark.parametrize("activation", ["relu", "gelu", "gelu_tanh", "silu"])
def test_activations_over_the_whole_range(activation, isa):
    special = [
        0.0,
        -0.0,
        float("inf"),
        -float("inf"),
        float("nan"),
        1e-30,
        -1e-30,
        3e38,
        -3e38,
        1e-42,
    ]
    points = torch.cat(
        [torch.linspace(-30, 30, 4001), torch.linspace(-100, 100, 401), torch.tensor(special)]
    )
    packed = NMWeight.pack(torch.tensor([[1.0, 0.0, 0.0, 0.0]] * 16), 2, 4)
    x = F.pad(points[:, None], (0, 3))
    y = call(x, packed, None, activation)[:, 0]
    truth = ACTIVATE[activation](points.double())
    same = ACTIVATE[activation](points)
    # float64 says what is special: torch's own AVX-512 float32 gelu is NaN at infinity and inf at 3e38
    assert torch.equal(y.isnan(), truth.isnan())
    for low, high in [
        (-1, 1),
        (-5, 5),
        (-30, 30),
        (-100, 100),
    ]:  # absolute error, scaled to each range
        inside = (points >= low) & (points <= high)
        assert_accurate(y[inside], truth[inside], same[inside])
    finite = points.isfinite()
    special_truth = truth[~finite].float()
    assert torch.equal(y[~finite].nan_to_num(nan=7.0), special_truth.nan_to_num(nan=7.0))


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("activation", list(ACTIVATE))
def test_gradients_match_the_dense_ones(activation, layout):
    x, packed, bias = small()
    x, bias = x.view(1, 5, -1).requires_grad_(), bias.requires_grad_()
    weight = packed.unpack().requires_grad_()
    values = packed.values.clone().requires_grad_(layout == "canonical")
    upstream = torch.randn(1, 5, 33)
    y = call(x, dataclasses.replace(packed, values=values), bias, activation, layout)
    (y * upstream).sum().backward()
    copies = [t.detach().double().requires_grad_() for t in (x, weight, bias)]
    same = [t.detach().clone().requires_grad_() for t in (x, weight, bias)]
    for inputs in (copies, same):
        (oracle(*inputs, activation, inputs[0].dtype) * upstream).sum().backward()
    assert_accurate(x.grad, copies[0].grad, same[0].grad)
    assert_accurate(bias.grad, copies[2].grad, same[2].grad)
    if layout == "canonical":
        kept = [
            ops.nm_pack(t.grad, 2, 4, packed.unpack() != 0, impl="reference").values
            for t in (copies[1], same[1])
        ]
        assert_accurate(values.grad, *kept)


def test_gradient_reaches_the_weight_through_pack():
    x, packed, _ = small()
    weight = torch.randn(33, 61, requires_grad=True)
    mask = packed.unpack() != 0
    ops.nm_linear(x, ops.nm_pack(weight, 2, 4, mask)).sum().backward()
    expected = torch.where(mask, x.sum(0).expand(33, 61), torch.zeros(()))
    torch.testing.assert_close(weight.grad, expected)


def test_bf16_gradients():
    x, packed, bias = small()
    x = x.bfloat16().requires_grad_()
    y = call(x, packed.to(torch.bfloat16), bias.bfloat16(), "silu", "canonical")
    y.sum().backward()
    assert y.dtype == x.grad.dtype == torch.bfloat16


def test_the_cpu_layout_has_no_gradient_for_values():
    x, packed, _ = small()
    values, meta = ops.prepare(packed)
    with pytest.raises(RuntimeError, match="layout 'cpu' is for inference"):
        ops.nm_linear.OP(x, values.requires_grad_(), meta, None, 33, 61, 2, 4, 1, "none", "cpu")


@pytest.mark.parametrize(
    "change, error, match",
    [
        ({"x": torch.zeros(2, 60)}, ValueError, r"x of shape \[..., 61\], got \(2, 60\)"),
        ({"x": torch.tensor(1.0)}, ValueError, "1 dimension or more"),
        ({"x": torch.zeros(2, 61).double()}, TypeError, "float32, got torch.float64"),
        ({"x": torch.zeros(2, 61).bfloat16()}, TypeError, "float32, got torch.bfloat16"),
        ({"bias": torch.zeros(32)}, ValueError, r"bias of shape \(33,\), got \(32,\)"),
        ({"bias": torch.zeros(33).int()}, TypeError, "got torch.int32"),
        ({"activation": "tanh"}, ValueError, "got 'tanh'"),
    ],
)
def test_refusals(change, error, match):
    x, packed, bias = small()
    arguments = {"x": x, "packed": packed, "bias": bias, "activation": "none", **change}
    with pytest.raises(error, match=match):
        ops.nm_linear(**arguments)


def test_the_op_itself_refuses_what_does_not_fit():
    """The second wall: the raw op, which the public function would not have called."""
    x, packed, bias = small()
    values, meta = ops.prepare(packed)
    good = [x, values, meta, bias, 33, 61, 2, 4, 1, "none", "cpu"]
    ops.nm_linear.OP(*good)
    for position, wrong, match in [
        (0, torch.zeros(2, 60), "in_features = 61, got 60"),
        (0, x.double(), "Double"),
        (1, values[:, :-1], "values"),
        (1, values.half(), "values"),
        (2, meta.long(), "meta"),
        (2, meta[:1], "meta"),
        (3, torch.zeros(34), "bias"),
        (6, 5, "n=5"),
        (8, 4, "shared = 1 or 16, got 4"),
        (9, "tanh", "tanh"),
        (10, "gpu", "gpu"),
    ]:
        arguments = list(good)
        arguments[position] = wrong
        with pytest.raises((RuntimeError, ValueError), match=match):
            ops.nm_linear.OP(*arguments)


@pytest.mark.parametrize("layout", LAYOUTS)
def test_opcheck(layout):
    x, packed, bias = small()
    tensors = ops.prepare(packed) if layout == "cpu" else (packed.values, packed.meta)
    arguments = (x.requires_grad_(), *tensors, bias, 33, 61, 2, 4, 1, "gelu", layout)
    torch.library.opcheck(torch.ops.evoprune.nm_linear.default, arguments)


def test_linear_picks_the_op():
    x, packed, bias = small()
    assert torch.equal(ops.linear(x, packed, bias, "relu"), ops.nm_linear(x, packed, bias, "relu"))
