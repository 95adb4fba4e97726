"""``evoprune::nm_linear``: y = act(x W^T + b) with an n:m packed weight."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from evoprune_kernels.formats import NMWeight
from evoprune_kernels.formats.nm import repeat_rows
from evoprune_kernels.ops._linear import (
    check_linear,
    grad_of_bias,
    grad_of_preactivation,
    needs_preactivation,
    refuse_grad_of_scale,
    scaled,
)
from evoprune_kernels.ops._op import define
from evoprune_kernels.ops.nm_linear.reference import dense_weight, nm_linear_reference
from evoprune_kernels.ops.nm_pack import UNPACK, check_packed, gather_kept


def _fake(
    x: Tensor,
    values: Tensor,
    meta: Tensor,
    bias: Tensor | None,
    out_features: int,
    in_features: int,
    n: int,
    m: int,
    shared: int,
    activation: str,
    layout: str,
    scale: Tensor | None = None,
) -> Tensor:
    return x.new_empty(*x.shape[:-1], out_features)


def _setup(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    x, values, meta, bias, *ctx.numbers, scale = inputs
    refuse_grad_of_scale("nm_linear", scale is not None and ctx.needs_input_grad[len(inputs) - 1])
    activation, layout = ctx.numbers[5:]
    if layout != "canonical" and ctx.needs_input_grad[1]:
        raise RuntimeError(
            f"nm_linear: the layout {layout!r} is for inference and has no gradient for values; "
            "pass the canonical tensors (layout 'canonical')"
        )
    ctx.save_for_backward(
        x if ctx.needs_input_grad[1] or needs_preactivation(activation) else None,
        values,
        meta,
        bias,
        scale,
        output if activation == "relu" else None,
    )


def _backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
    x, values, meta, bias, scale, output = ctx.saved_tensors
    out_features, in_features, n, m, shared, activation, layout = ctx.numbers

    def preactivation() -> Tensor:
        return OP(x, values, meta, bias, *ctx.numbers[:5], "none", layout, scale)

    grad = grad_of_preactivation(grad, activation, output, preactivation)
    grad_x = grad_values = grad_bias = None
    if ctx.needs_input_grad[0]:
        if layout != "canonical" or scale is not None:
            shape, pattern = (out_features, in_features), (n, m, shared)
            weight = dense_weight(values, meta, shape, pattern, layout)
        else:
            weight = UNPACK(values, repeat_rows(meta, shared, out_features), n, m, in_features)
        grad_x = grad @ scaled(weight, scale, grad.dtype)
    if ctx.needs_input_grad[1]:
        grad_weight = grad.reshape(-1, out_features).t() @ x.reshape(-1, in_features)
        places = repeat_rows(meta, shared, out_features)
        grad_values = gather_kept(grad_weight, places, n, m).to(values.dtype)
    if bias is not None and ctx.needs_input_grad[3]:
        grad_bias = grad_of_bias(grad, bias)
    return grad_x, grad_values, None, grad_bias, *[None] * 8


OP = define(
    "nm_linear(Tensor x, Tensor values, Tensor meta, Tensor? bias, int out_features, int in_features, "
    "int n, int m, int shared, str activation, str layout, Tensor? scale=None) -> Tensor",
    reference=nm_linear_reference,
    fake=_fake,
    setup_context=_setup,
    backward=_backward,
)


def nm_linear(
    x: Tensor,
    packed: NMWeight,
    bias: Tensor | None = None,
    activation: str = "none",
    *,
    impl: str | None = None,
) -> Tensor:
    """A linear layer whose weight keeps n of every m.

    ``y = act(x W^T + b)``, ``W = packed.unpack()``

    Args:
        x: [..., K], float32 or bfloat16 for the C++ kernels, on CUDA float16 as well; the dtype of
            ``packed.values``, or float32 for bfloat16 values, or any of the three for int8 ones.
        packed: the weight [N, K].
        bias: [N], float32, bfloat16 or the dtype of x, or None.
        activation: ``"none"``, ``"relu"``, ``"gelu"``, ``"gelu_tanh"`` or ``"silu"``.
        impl: insist on an implementation.

    Returns:
        y [..., N] in the dtype of x.

    Raises:
        ValueError, TypeError: if shapes, dtypes or devices do not fit.

    Notes:
        Sums, bias and activation are float32; bfloat16 is only stored. Deterministic, the same for every number of
        threads. NaN and infinity: a stored place (a filled-up one as well) takes part, any other does not, where a
        dense product has 0 * inf = NaN. Gradients: of x, bias and ``packed.values`` (stored places only); dX and dW
        are dense products with the unpacked weight.
        This call lays the weight out anew each time; to run it often use ``ops.prepare`` and
        ``ops.nm_linear.OP(x, *ops.prepare(packed), bias, N, K, n, m, shared, activation, "cpu")``.

    Example:
        >>> import torch
        >>> from evoprune_kernels import ops
        >>> packed = ops.nm_pack(torch.tensor([[0.0, 5.0, 0.0, 6.0]]), 2, 4)
        >>> ops.nm_linear(torch.ones(1, 4), packed)
        tensor([[11.]])
    """
    check_packed(packed)
    check_linear(x, packed, bias, activation)
    numbers = (*packed.shape, *packed.pattern.arguments(), activation, "canonical", packed.scale)
    return OP(x, packed.values, packed.meta, bias, *numbers, impl=impl)


nm_linear.OP = OP  # type: ignore[attr-defined]
