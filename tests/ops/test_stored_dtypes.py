"""Weights stored narrower than x (int8 with a scale a row, bfloat16 for float32 x) in every linear op."""

from __future__ import annotations

import pytest
import torch
from torch.nn import functional as F

from evoprune_kernels import formats, ops
from tests.formats.test_quantize import PATTERNS, pruned
from tests.tolerance import assert_accurate

STORED = [("int8", torch.float32), ("int8", torch.bfloat16), ("bfloat16", torch.float32)]
TOKENS = (1, 3, 16, 70)


def packed_as(stored, pattern):
    if stored == "bfloat16":
        return formats.pack(pruned(pattern, dtype=torch.bfloat16), pattern)
    return formats.pack(pruned(pattern), pattern).quantize()


def call(x, packed, bias, activation, layout, impl=None):
    op = ops.OPS[f"{packed.FORMAT}_linear"]
    tensors = (
        ops.prepare(packed)
        if layout == "cpu"
        else [getattr(packed, name) for name in packed.TENSORS]
    )
    numbers = (*packed.shape, *packed.pattern.arguments(), activation, layout, packed.scale)
    return op(x, *tensors, bias, *numbers, impl=impl)


def dense(x, packed, bias, dtype):
    weight = packed.unpack().to(dtype)
    return F.gelu(F.linear(x.to(dtype), weight, bias.to(dtype)))


@pytest.mark.parametrize("layout", ["canonical", "cpu"])
@pytest.mark.parametrize("stored,dtype", STORED, ids=str)
@pytest.mark.parametrize("pattern", PATTERNS)
def test_matches_the_dense_product(pattern, stored, dtype, layout, isa, threads):
    packed = packed_as(stored, pattern)
    bias = torch.randn(37)
    for tokens in TOKENS:
        x = torch.randn(tokens, 45).to(dtype)
        y = call(x, packed, bias, "gelu", layout)
        assert y.dtype == dtype
        truth = dense(x, packed, bias, torch.float64)
        assert_accurate(y, truth, dense(x, packed, bias, torch.float32).to(dtype))


@pytest.mark.parametrize("stored,dtype", STORED, ids=str)
@pytest.mark.parametrize("pattern", PATTERNS)
def test_reference_and_public_function(pattern, stored, dtype):
    packed = packed_as(stored, pattern)
    x, bias = torch.randn(5, 45).to(dtype), torch.randn(37)
    truth = dense(x, packed, bias, torch.float64)
    same = dense(x, packed, bias, torch.float32).to(dtype)
    for layout in ("canonical", "cpu"):
        assert_accurate(call(x, packed, bias, "gelu", layout, "reference"), truth, same)
    assert_accurate(ops.linear(x, packed, bias, "gelu"), truth, same)


@pytest.mark.parametrize("layout", ["canonical", "cpu"])
@pytest.mark.parametrize("stored", ["int8", "bfloat16"])
@pytest.mark.parametrize("pattern", PATTERNS)
def test_gradient_of_x(pattern, stored, layout):
    packed = packed_as(stored, pattern)
    x = torch.randn(4, 45, requires_grad=True)
    grad = torch.randn(4, 37)
    bias = torch.randn(37, requires_grad=True)
    call(x, packed, bias, "gelu", layout).backward(grad)
    twin, twin_bias = x.detach().double().requires_grad_(), bias.detach().double().requires_grad_()
    dense(twin, packed, twin_bias, torch.float64).backward(grad.double())
    assert_accurate(x.grad, twin.grad, twin.grad.float())
    assert_accurate(bias.grad, twin_bias.grad, twin_bias.grad.float())


@pytest.mark.parametrize("pattern", PATTERNS)
def test_errors(pattern):
    packed = packed_as("int8", pattern)
    op = ops.OPS[f"{packed.FORMAT}_linear"]
    tensors = [getattr(packed, name) for name in packed.TENSORS]
    numbers = (*packed.shape, *packed.pattern.arguments(), "none", "canonical")
    x = torch.randn(2, 45)
    for scale in (None, packed.scale[1:], packed.scale.double()):
        with pytest.raises(RuntimeError, match="scale"):
            op(x, *tensors, None, *numbers, scale)
    with pytest.raises(RuntimeError, match="no gradient"):
        op(x, *tensors, None, *numbers, packed.scale.clone().requires_grad_())
    wide = formats.pack(pruned(pattern), pattern)
    with pytest.raises(RuntimeError, match="scale"):
        op(x, *[getattr(wide, name) for name in wide.TENSORS], None, *numbers, packed.scale)
    with pytest.raises(TypeError, match="x of dtype"):
        ops.linear(x.bfloat16(), wide)
    with pytest.raises(TypeError, match="x of dtype"):
        ops.linear(x.double(), packed)


@pytest.mark.parametrize("pattern", ["2:4", "block:16x16", "unstructured"])
def test_opcheck(pattern):
    packed = packed_as("int8", pattern)
    op = ops.OPS[f"{packed.FORMAT}_linear"].overload
    numbers = (*packed.shape, *packed.pattern.arguments(), "relu", "cpu", packed.scale)
    x = torch.randn(3, 45, requires_grad=True)
    torch.library.opcheck(op, (x, *ops.prepare(packed), torch.randn(37), *numbers))
