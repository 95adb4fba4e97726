"""block_linear: an independent dense oracle in fp64, every ISA level and thread count, both layouts, gradients."""

from __future__ import annotations

import dataclasses

import pytest
import torch
from torch.nn import functional as F

from evoprune_kernels import ops
from evoprune_kernels.formats import BlockWeight
from evoprune_kernels.formats.block import rows_of
from evoprune_kernels.ops.block_linear.backward import DW, DX, transpose_index
from evoprune_kernels.ops.block_linear.cases import CASES
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
    tensors = ops.prepare(packed, impl=impl) if layout == "cpu" else packed.tensors().values()
    rest = (*packed.shape, *packed.pattern.arguments(), activation, layout)
    return ops.block_linear.OP(x, *tensors, bias, *rest, impl=impl)


def small(tokens=5, rows=33, columns=61, bn=16, bk=16, density=0.5):
    weight = torch.randn(rows, columns)
    mask = ops.select_block(torch.rand(rows, columns), bn, bk, density)
    return torch.randn(tokens, columns), ops.block_pack(weight, bn, bk, mask), torch.randn(rows)


def test_literal():
    packed = BlockWeight.pack(torch.tensor([[0.0, 0.0, 5.0, 6.0], [0.0, 0.0, 1.0, 0.0]]), 2, 2)
    x = torch.tensor([[1.0, 2.0, 3.0, 4.0]])
    for layout in LAYOUTS:
        y = call(x, packed, torch.tensor([0.5, -4.0]), "relu", layout)
        assert y.tolist() == [[39.5, 0.0]]


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("case", CASES, ids=lambda c: c.name)
def test_matches_the_dense_product(case, layout, isa, threads):
    x, packed, bias, activation = case.args()
    weight = packed.unpack()
    truth = oracle(x, weight, bias, activation, torch.float64)
    y = call(x, packed, bias, activation, layout)
    assert_accurate(y, truth, oracle(x, weight, bias, activation, x.dtype))
    assert y.is_contiguous()


@pytest.mark.parametrize("case", CASES, ids=lambda c: c.name)
def test_reference_matches_the_dense_product(case):
    x, packed, bias, activation = case.args()
    weight = packed.unpack()
    truth = oracle(x, weight, bias, activation, torch.float64)
    for layout in LAYOUTS:
        y = call(x, packed, bias, activation, layout, impl="reference")
        assert_accurate(y, truth, oracle(x, weight, bias, activation, x.dtype))


@pytest.mark.parametrize("case", CASES, ids=lambda c: c.name)
def test_prepare_matches_the_reference(case):
    packed = case.args()[1]
    for actual, expected in zip(
        ops.prepare(packed), ops.prepare(packed, impl="reference"), strict=True
    ):
        assert actual.dtype == expected.dtype
        assert torch.equal(actual, expected)


@pytest.mark.parametrize("tokens", [1, 4, 70])
def test_threads_do_not_change_a_bit(tokens):
    x, packed, bias = small(tokens, 100, 200)
    before = torch.get_num_threads()
    results = []
    for count in (1, 2, 3):
        torch.set_num_threads(count)
        results.append(call(x, packed, bias, "gelu"))
    torch.set_num_threads(before)
    assert torch.equal(results[0], results[1]) and torch.equal(results[0], results[2])


@pytest.mark.parametrize("tokens", [1, 9, 70])
def test_non_contiguous_x(tokens, isa):
    _, packed, bias = small(tokens)
    wide = torch.randn(tokens, 2 * 61)[:, ::2]
    y = call(wide, packed, bias)
    assert torch.equal(y, call(wide.contiguous(), packed, bias))


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
        mask = packed.unpack() != 0
        kept = [
            BlockWeight.pack(t.grad, *packed.pattern.arguments(), mask=mask).values
            for t in (copies[1], same[1])
        ]
        assert_accurate(values.grad, *kept)


def test_gradient_reaches_the_weight_through_pack():
    x, packed, _ = small()
    weight = torch.randn(33, 61, requires_grad=True)
    mask = packed.unpack() != 0
    ops.linear(x, ops.block_pack(weight, 16, 16, mask)).sum().backward()
    expected = torch.where(mask, x.sum(0).expand(33, 61), torch.zeros(()))
    torch.testing.assert_close(weight.grad, expected)


def test_bf16_gradients():
    x, packed, bias = small()
    x = x.bfloat16().requires_grad_()
    packed = packed.to(torch.bfloat16)
    y = call(x, packed, bias.bfloat16(), "silu", "canonical")
    y.sum().backward()
    assert y.dtype == x.grad.dtype == torch.bfloat16


def test_the_cpu_layout_has_no_gradient_for_values():
    x, packed, _ = small()
    prepared = ops.prepare(packed)
    prepared[0].requires_grad_()
    rest = (*packed.shape, *packed.pattern.arguments(), "none", "cpu")
    with pytest.raises(RuntimeError, match="layout 'cpu' is for inference"):
        ops.block_linear.OP(x, *prepared, None, *rest)


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
        ops.block_linear(**arguments)


@pytest.mark.parametrize("layout", LAYOUTS)
def test_opcheck(layout):
    x, packed, bias = small()
    tensors = ops.prepare(packed) if layout == "cpu" else packed.tensors().values()
    rest = (*packed.shape, *packed.pattern.arguments(), "gelu", layout)
    arguments = (x.requires_grad_(), *tensors, bias, *rest)
    torch.library.opcheck(torch.ops.evoprune.block_linear.default, arguments)


def test_opcheck_of_prepare():
    packed = small()[1]
    arguments = (*packed.tensors().values(), *packed.shape)
    torch.library.opcheck(torch.ops.evoprune.block_prepare.default, arguments)


def test_linear_picks_the_op():
    x, packed, bias = small()
    assert torch.equal(
        ops.linear(x, packed, bias, "relu"), ops.block_linear(x, packed, bias, "relu")
    )


@pytest.mark.parametrize("tokens", [1, 9, 70])
def test_nan_and_infinity_reach_only_their_outputs(tokens, isa):
    """A kept block spreads them as the dense product does; a removed one does not read x at all."""
    _, packed, _ = small(density=0.5)
    x = torch.ones(tokens, 61)
    x[0, 3], x[-1, 60] = float("nan"), float("inf")
    y = call(x, packed, impl="cpu")
    for token in range(tokens):
        for block_row in range(3):
            blocks = slice(int(packed.row_ptr[block_row]), int(packed.row_ptr[block_row + 1]))
            reached = {int(c) for c in packed.col_idx[blocks]}
            bad = (token == 0 and 0 in reached) or (token == tokens - 1 and 3 in reached)
            rows = y[token, block_row * 16 : block_row * 16 + 16]
            assert rows.isfinite().all() == (not bad)


def poke(index, at, value):
    """Changes one entry of one tensor."""

    def change(tensors):
        tensors[index] = tensors[index].clone()
        tensors[index].view(-1)[at] = value

    return change


def cut(index):
    """Drops the last entry of one tensor."""

    def change(tensors):
        tensors[index] = tensors[index][:-1]

    return change


CORRUPT = [
    ("canonical", poke(2, 0, 4), r"col_idx\[0\]: expected 0 to 3, got 4"),
    ("canonical", poke(2, 1, -1), r"col_idx\[1\]: expected 0 to 3, got -1"),
    ("canonical", poke(1, 0, 1), "row_ptr must rise from 0"),
    ("canonical", poke(1, 1, 99), "row_ptr must rise from 0"),
    ("canonical", poke(1, 3, 99), "row_ptr must rise from 0"),
    ("canonical", cut(0), "row_ptr must rise|col_idx"),
    ("canonical", cut(1), r"row_ptr.size\(0\) = 4, got 3"),
    ("canonical", cut(2), "col_idx"),
    ("cpu", poke(2, 0, 64), "col_idx within 0 to 48, got 0 to 64"),
    ("cpu", poke(2, 0, -16), "col_idx within 0 to 48, got -16"),
    ("cpu", poke(1, 1, 99), "row_ptr must rise from 0"),
    ("cpu", cut(1), r"row_ptr.size\(0\) = 4, got 3"),
    ("cpu", cut(2), "col_idx"),
]


@pytest.mark.parametrize("layout, change, match", CORRUPT)
def test_corrupt_tensors_are_refused_by_the_kernel(layout, change, match):
    x, packed, _ = small()
    tensors = list(ops.prepare(packed) if layout == "cpu" else packed.tensors().values())
    change(tensors)
    rest = (*packed.shape, *packed.pattern.arguments(), "none", layout)
    with pytest.raises(RuntimeError, match=match):
        ops.block_linear.OP(x, *tensors, None, *rest, impl="cpu")


def backward_inputs():
    x, packed, _ = small()
    rows = rows_of(packed.row_ptr, packed.values.shape[0]).int()
    return torch.randn(5, 33), x, packed, rows


def test_the_transposed_index_lists_every_block_by_column():
    packed = small(rows=100, columns=200)[1]
    col_ptr, row_idx, order = transpose_index(packed.row_ptr, packed.col_idx, 13)
    expected = BlockWeight.pack(packed.unpack().t(), 16, 16)
    assert torch.equal(packed.values[order].transpose(1, 2), expected.values)
    assert torch.equal(col_ptr, expected.row_ptr) and torch.equal(row_idx, expected.col_idx)
    assert {t.dtype for t in (col_ptr, row_idx, order)} == {torch.int32}


def test_backward_products_match_the_dense_ones():
    grad, x, packed, rows = backward_inputs()
    dx = DX(
        grad, packed.values, *transpose_index(packed.row_ptr, packed.col_idx, 4), 33, 61, 16, 16
    )
    torch.testing.assert_close(dx, grad @ packed.unpack())
    dw = BlockWeight(
        DW(grad, x, rows, packed.col_idx, 16, 16), packed.row_ptr, packed.col_idx, (33, 61)
    )
    dw.validate()
    kept = packed.unpack() != 0
    torch.testing.assert_close(dw.unpack(), torch.where(kept, grad.t() @ x, torch.zeros(())))


def test_opcheck_of_the_backward_products():
    grad, x, packed, rows = backward_inputs()
    index = transpose_index(packed.row_ptr, packed.col_idx, 4)
    torch.library.opcheck(DX.overload, (grad, packed.values, *index, 33, 61, 16, 16))
    torch.library.opcheck(DW.overload, (grad, x, rows, packed.col_idx, 16, 16))


def test_a_second_derivative_is_refused():
    x, packed, _ = small()
    x.requires_grad_()
    upstream = torch.ones(5, 33, requires_grad=True)
    (grad,) = torch.autograd.grad(
        call(x, packed, layout="canonical"), x, upstream, create_graph=True
    )
    with pytest.raises(RuntimeError, match="block_linear has no second derivative"):
        grad.sum().backward()
