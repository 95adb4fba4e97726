"""``evoprune::block_linear``: y = act(x W^T + b) with a weight of kept blocks."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from evoprune_kernels.formats import BlockWeight
from evoprune_kernels.ops._linear import (
    check_linear,
    grad_of_bias,
    grad_of_preactivation,
    needs_preactivation,
    refuse_grad_of_scale,
    scaled,
)
from evoprune_kernels.ops._op import define
from evoprune_kernels.ops.block_linear import index
from evoprune_kernels.ops.block_linear.backward import DW, DX
from evoprune_kernels.ops.block_linear.reference import block_linear_reference, dense_weight


def _fake(
    x: Tensor,
    values: Tensor,
    row_ptr: Tensor,
    col_idx: Tensor,
    bias: Tensor | None,
    out_features: int,
    in_features: int,
    bn: int,
    bk: int,
    activation: str,
    layout: str,
    scale: Tensor | None = None,
) -> Tensor:
    return x.new_empty(*x.shape[:-1], out_features)


def _setup(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    x, values, row_ptr, col_idx, bias, *ctx.numbers, scale = inputs
    refuse_grad_of_scale(
        "block_linear", scale is not None and ctx.needs_input_grad[len(inputs) - 1]
    )
    activation, layout = ctx.numbers[4:]
    if layout == "cpu" and ctx.needs_input_grad[1]:
        raise RuntimeError(
            "block_linear: the layout 'cpu' is for inference and has no gradient for values; "
            "pass the canonical tensors (layout 'canonical')"
        )
    ctx.save_for_backward(
        x if ctx.needs_input_grad[1] or needs_preactivation(activation) else None,
        values,
        row_ptr,
        col_idx,
        bias,
        scale,
        output if activation == "relu" else None,
    )


def _backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
    x, values, row_ptr, col_idx, bias, scale, output = ctx.saved_tensors
    out_features, in_features, bn, bk, activation, layout = ctx.numbers
    packed = (values, row_ptr, col_idx)

    def preactivation() -> Tensor:
        return OP(x, *packed, bias, out_features, in_features, bn, bk, "none", layout, scale)

    grad = grad_of_preactivation(grad, activation, output, preactivation)
    grad_x = grad_values = grad_bias = None
    if ctx.needs_input_grad[0]:
        if layout == "cpu" or scale is not None:
            shape = (out_features, in_features)
            weight = dense_weight(*packed, shape, (bn, bk), layout)
            grad_x = grad @ scaled(weight, scale, grad.dtype)
        else:
            columns = -(-in_features // bk)
            transposed = index.transposed(row_ptr, col_idx, columns)
            grad_x = DX(grad, values, *transposed, *ctx.numbers[:4])
    if ctx.needs_input_grad[1]:
        rows = index.block_rows(row_ptr, col_idx)
        grad_values = DW(grad, x, rows, col_idx, bn, bk).to(values.dtype)
    if bias is not None and ctx.needs_input_grad[4]:
        grad_bias = grad_of_bias(grad, bias)
    return grad_x, grad_values, None, None, grad_bias, *[None] * 7


OP = define(
    "block_linear(Tensor x, Tensor values, Tensor row_ptr, Tensor col_idx, Tensor? bias, int out_features, "
    "int in_features, int bn, int bk, str activation, str layout, Tensor? scale=None) -> Tensor",
    reference=block_linear_reference,
    fake=_fake,
    setup_context=_setup,
    backward=_backward,
)


def block_linear(
    x: Tensor,
    packed: BlockWeight,
    bias: Tensor | None = None,
    activation: str = "none",
    *,
    impl: str | None = None,
) -> Tensor:
    """A linear layer whose weight keeps some of its blocks.

    ``y = act(x W^T + b)``, ``W = packed.unpack()``

    Args:
        x: [..., K], float32 or bfloat16 for the C++ kernels; the dtype of ``packed.values``, or float32 for
            bfloat16 values, or either for int8 ones. The CUDA kernels take float32, bfloat16 and float16, values of
            the same dtype, and blocks with edges of 16, 32, 64 and 128.
        packed: the weight [N, K].
        bias: [N], float32 or bfloat16, or None.
        activation: ``"none"``, ``"relu"``, ``"gelu"``, ``"gelu_tanh"`` or ``"silu"``.
        impl: insist on an implementation.

    Returns:
        y [..., N] in the dtype of x.

    Raises:
        ValueError, TypeError: if shapes, dtypes or devices do not fit, or ``packed`` is not valid.

    Notes:
        Sums, bias and activation are float32; bfloat16 is only stored. Deterministic, the same for every number of
        threads. NaN and infinity: every entry of a kept block takes part, no other does, where a dense product has
        0 * inf = NaN. Gradients: of x (a product with the kept blocks), bias and ``packed.values`` (kept blocks only).
        On CUDA float32 operands are rounded to tf32 (10 bits of mantissa, an error of 2^-11 in each), as torch does
        with ``torch.backends.cuda.matmul.allow_tf32``; sums stay float32. There the canonical tensors are read as they
        are, nothing is laid out.
        On the CPU this call lays the weight out anew each time; to run it often use ``ops.prepare`` and
        ``ops.block_linear.OP(x, *ops.prepare(packed), bias, N, K, bn, bk, activation, "cpu")``.

    Example:
        >>> import torch
        >>> from evoprune_kernels import ops
        >>> packed = ops.block_pack(torch.tensor([[0.0, 0.0, 5.0, 6.0]]), 1, 2)
        >>> ops.block_linear(torch.ones(1, 4), packed)
        tensor([[11.]])
    """
    packed.validate()
    check_linear(x, packed, bias, activation)
    numbers = (*packed.shape, *packed.pattern.arguments(), activation, "canonical", packed.scale)
    return OP(x, packed.values, packed.row_ptr, packed.col_idx, bias, *numbers, impl=impl)


block_linear.OP = OP  # type: ignore[attr-defined]
