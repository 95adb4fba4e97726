"""nm_linear, block_linear and bitmask_linear: what holds for all three.

Against an independent dense oracle in fp64, at every ISA level and thread count, in both layouts, with gradients.
"""

from __future__ import annotations

import dataclasses

import pytest
import torch

from evoprune_kernels import ops
from tests.ops.linears import ACTIVATE, COLUMNS, FORMATS, LAYOUTS, ROWS, oracle
from tests.tolerance import assert_accurate

CASES = [
    pytest.param(format_, case, id=f"{format_.name}-{case.name}")
    for format_ in FORMATS
    for case in format_.cases
]


@pytest.fixture(params=FORMATS, ids=lambda f: f.name)
def format_(request):
    """Each sparse linear op."""
    return request.param


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("format_, case", CASES)
def test_matches_the_dense_product(format_, case, layout, isa, threads):
    x, packed, bias, activation = case.args()
    weight = packed.unpack()
    truth = oracle(x, weight, bias, activation, torch.float64)
    y = format_.call(x, packed, bias, activation, layout)
    assert_accurate(y, truth, oracle(x, weight, bias, activation, x.dtype))
    assert y.is_contiguous()


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("format_, case", CASES)
def test_reference_matches_the_dense_product(format_, case, layout):
    x, packed, bias, activation = case.args()
    weight = packed.unpack()
    truth = oracle(x, weight, bias, activation, torch.float64)
    y = format_.call(x, packed, bias, activation, layout, impl="reference")
    assert_accurate(y, truth, oracle(x, weight, bias, activation, x.dtype))


@pytest.mark.parametrize("format_, case", CASES)
def test_prepare_matches_the_reference(format_, case):
    packed = case.args()[1]
    for actual, expected in zip(
        ops.prepare(packed), ops.prepare(packed, impl="reference"), strict=True
    ):
        assert actual.dtype == expected.dtype
        assert torch.equal(actual, expected)


@pytest.mark.parametrize("tokens", [1, 4, 37, 70, 129])  # from 64 on also tokens in lanes
def test_threads_do_not_change_a_bit(format_, tokens):
    x, packed, bias = format_.small(tokens, 100, 200)
    before = torch.get_num_threads()
    results = []
    for count in (1, 2, 3):
        torch.set_num_threads(count)
        results.append(format_.call(x, packed, bias, "gelu"))
    torch.set_num_threads(before)
    assert torch.equal(results[0], results[1]) and torch.equal(results[0], results[2])


@pytest.mark.parametrize("tokens", [1, 9, 70])
def test_non_contiguous_and_misaligned_x(format_, tokens, isa):
    x, packed, bias = format_.small(tokens)
    expected = format_.call(x, packed, bias)
    assert torch.equal(format_.call(x.t().contiguous().t(), packed, bias), expected)
    wide = torch.full((tokens, COLUMNS + 3), float("nan"))
    wide[:, 3:] = x
    assert torch.equal(format_.call(wide[:, 3:], packed, bias), expected)
    wide = torch.full((tokens, 2 * COLUMNS), float("nan"))
    wide[:, ::2] = x
    assert torch.equal(format_.call(wide[:, ::2], packed, bias), expected)
    shifted = torch.empty(x.numel() + 1)[1:].view_as(x).copy_(x)
    assert torch.equal(format_.call(shifted, packed, bias), expected)
    strided = torch.stack([bias, bias], 1)[:, 0]
    assert torch.equal(format_.call(x, packed, strided), expected)


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("activation", list(ACTIVATE))
def test_gradients_match_the_dense_ones(format_, activation, layout):
    x, packed, bias = format_.small()
    x, bias = x.view(1, 5, -1).requires_grad_(), bias.requires_grad_()
    weight = packed.unpack().requires_grad_()
    values = packed.values.clone().requires_grad_(layout == "canonical")
    upstream = torch.randn(1, 5, ROWS)
    y = format_.call(x, dataclasses.replace(packed, values=values), bias, activation, layout)
    (y * upstream).sum().backward()
    copies = [t.detach().double().requires_grad_() for t in (x, weight, bias)]
    same = [t.detach().clone().requires_grad_() for t in (x, weight, bias)]
    for inputs in (copies, same):
        (oracle(*inputs, activation, inputs[0].dtype) * upstream).sum().backward()
    assert_accurate(x.grad, copies[0].grad, same[0].grad)
    assert_accurate(bias.grad, copies[2].grad, same[2].grad)
    if layout == "canonical":
        pattern = packed.pattern.arguments()
        kept = [
            type(packed).pack(t.grad, *pattern, mask=packed.unpack() != 0).values
            for t in (copies[1], same[1])
        ]
        assert_accurate(values.grad, *kept)


def test_gradient_reaches_the_weight_through_pack(format_):
    x, packed, _ = format_.small()
    weight = torch.randn(ROWS, COLUMNS, requires_grad=True)
    mask = packed.unpack() != 0
    ops.linear(x, format_.pack(weight, mask)).sum().backward()
    expected = torch.where(mask, x.sum(0).expand(ROWS, COLUMNS), torch.zeros(()))
    torch.testing.assert_close(weight.grad, expected)


def test_bf16_gradients(format_):
    x, packed, bias = format_.small()
    x = x.bfloat16().requires_grad_()
    packed = packed.to(torch.bfloat16)
    y = format_.call(x, packed, bias.bfloat16(), "silu", "canonical")
    y.sum().backward()
    assert y.dtype == x.grad.dtype == torch.bfloat16


def test_the_cpu_layout_has_no_gradient_for_values(format_):
    x, packed, _ = format_.small()
    prepared = ops.prepare(packed)
    prepared[0].requires_grad_()
    rest = (*packed.shape, *packed.pattern.arguments(), "none", "cpu")
    with pytest.raises(RuntimeError, match="layout 'cpu' is for inference"):
        format_.op(x, *prepared, None, *rest)


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
def test_refusals(format_, change, error, match):
    x, packed, bias = format_.small()
    arguments = {"x": x, "packed": packed, "bias": bias, "activation": "none", **change}
    with pytest.raises(error, match=match):
        format_.linear(**arguments)


@pytest.mark.parametrize("layout", LAYOUTS)
def test_opcheck(format_, layout):
    x, packed, bias = format_.small()
    rest = (*packed.shape, *packed.pattern.arguments(), "gelu", layout)
    arguments = (x.requires_grad_(), *format_.tensors(packed, layout), bias, *rest)
    torch.library.opcheck(format_.op.overload, arguments)


def test_linear_picks_the_op(format_):
    x, packed, bias = format_.small()
    assert torch.equal(ops.linear(x, packed, bias, "relu"), format_.linear(x, packed, bias, "relu"))
