"""``evoprune::bitmask_linear``: y = act(x W^T + b) with a weight of any mask."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from evoprune_kernels.formats import BitmaskWeight
from evoprune_kernels.ops._linear import (
    check_linear,
    grad_of_bias,
    grad_of_preactivation,
    needs_preactivation,
    refuse_grad_of_scale,
    scaled,
)
from evoprune_kernels.ops._op import define
from evoprune_kernels.ops.bitmask_linear.reference import bitmask_linear_reference, dense_weight
from evoprune_kernels.ops.bitmask_pack import kept_positions


def _fake(
    x: Tensor,
    values: Tensor,
    bits: Tensor,
    row_ptr: Tensor,
    bias: Tensor | None,
    out_features: int,
    in_features: int,
    activation: str,
    layout: str,
    scale: Tensor | None = None,
) -> Tensor:
    return x.new_empty(*x.shape[:-1], out_features)


def _setup(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    x, values, bits, row_ptr, bias, *ctx.numbers, scale = inputs
    refuse_grad_of_scale(
        "bitmask_linear", scale is not None and ctx.needs_input_grad[len(inputs) - 1]
    )
    activation, layout = ctx.numbers[2:]
    if layout == "cpu" and ctx.needs_input_grad[1]:
        raise RuntimeError(
            "bitmask_linear: the layout 'cpu' is for inference and has no gradient for values; "
            "pass the canonical tensors (layout 'canonical')"
        )
    ctx.save_for_backward(
        x if ctx.needs_input_grad[1] or needs_preactivation(activation) else None,
        values,
        bits,
        row_ptr,
        bias,
        scale,
        output if activation == "relu" else None,
    )


def _backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
    x, values, bits, row_ptr, bias, scale, output = ctx.saved_tensors
    out_features, in_features, activation, layout = ctx.numbers
    packed = (values, bits, row_ptr)

    def preactivation() -> Tensor:
        return OP(x, *packed, bias, out_features, in_features, "none", layout, scale)

    grad = grad_of_preactivation(grad, activation, output, preactivation)
    grad_x = grad_values = grad_bias = None
    if ctx.needs_input_grad[0]:
        weight = dense_weight(*packed, in_features, layout)
        grad_x = grad @ scaled(weight, scale, grad.dtype)
    if ctx.needs_input_grad[1]:
        grad_weight = grad.reshape(-1, out_features).t() @ x.reshape(-1, in_features)
        kept = kept_positions(bits, in_features, values.shape[0])
        grad_values = grad_weight.reshape(-1)[kept].to(values.dtype)
    if bias is not None and ctx.needs_input_grad[4]:
        grad_bias = grad_of_bias(grad, bias)
    return grad_x, grad_values, None, None, grad_bias, *[None] * 5


OP = define(
    "bitmask_linear(Tensor x, Tensor values, Tensor bits, Tensor row_ptr, Tensor? bias, int out_features, "
    "int in_features, str activation, str layout, Tensor? scale=None) -> Tensor",
    reference=bitmask_linear_reference,
    fake=_fake,
    setup_context=_setup,
    backward=_backward,
)


def bitmask_linear(
    x: Tensor,
    packed: BitmaskWeight,
    bias: Tensor | None = None,
    activation: str = "none",
    *,
    impl: str | None = None,
) -> Tensor:
    """A linear layer whose weight has any mask.

    ``y = act(x W^T + b)``, ``W = packed.unpack()``

    Args:
        x: [..., K], float32 or bfloat16 for the C++ kernels, on CUDA float16 as well; the dtype of
            ``packed.values``, or (not on CUDA) float32 for bfloat16 values, or any of the three for int8 ones.
        packed: the weight [N, K].
        bias: [N], float32, bfloat16 or the dtype of x, or None.
        activation: ``"none"``, ``"relu"``, ``"gelu"``, ``"gelu_tanh"`` or ``"silu"``.
        impl: insist on an implementation.

    Returns:
        y [..., N] in the dtype of x.

    Raises:
        ValueError, TypeError: if shapes, dtypes or devices do not fit, or ``packed`` is not valid.

    Notes:
        Sums, bias and activation are float32; bfloat16 is only stored. Deterministic, the same for every number of
        threads. NaN and infinity: only kept entries take part, where a dense product has 0 * inf = NaN. Gradients: of
        x, bias and ``packed.values`` (kept entries only); dX and dW are dense products with the unpacked weight.
        On the CPU this call lays the weight out anew each time; to run it often use ``ops.prepare`` and
        ``ops.bitmask_linear.OP(x, *ops.prepare(packed), bias, N, K, activation, "cpu")``. The CUDA kernel takes the
        canonical tensors; ``OP`` does not compare row_ptr with bits there (it would wait for the device): where they
        disagree, which ``packed.validate()`` finds, results mean nothing, but nothing outside a tensor is read.

    Example:
        >>> import torch
        >>> from evoprune_kernels import ops
        >>> packed = ops.bitmask_pack(torch.tensor([[0.0, 5.0, 0.0, 6.0]]))
        >>> ops.bitmask_linear(torch.ones(1, 4), packed)
        tensor([[11.]])
    """
    packed.validate()
    check_linear(x, packed, bias, activation)
    numbers = (*packed.shape, activation, "canonical", packed.scale)
    return OP(x, packed.values, packed.bits, packed.row_ptr, bias, *numbers, impl=impl)


bitmask_linear.OP = OP  # type: ignore[attr-defined]
