"""``evoprune::w8a8_linear``: y = act(x W^T + b) with int8 weights and int8 activations."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from evoprune_kernels.formats import PackedWeight
from evoprune_kernels.ops._linear import check_linear
from evoprune_kernels.ops._op import define
from evoprune_kernels.ops.w8a8_linear.reference import w8a8_linear_reference
from evoprune_kernels.ops.w8a8_prepare import w8a8_picks, w8a8_prepare


def _fake(
    x: Tensor,
    values: Tensor,
    row_ptr: Tensor,
    columns: Tensor,
    row_sums: Tensor,
    bias: Tensor | None,
    out_features: int,
    in_features: int,
    picks: str,
    activation: str,
    scale: Tensor,
) -> Tensor:
    return x.new_empty(*x.shape[:-1], out_features)


def _setup(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    if any(ctx.needs_input_grad):
        raise RuntimeError(
            "w8a8_linear: rounded activations have no gradient; it is for inference (torch.no_grad())"
        )


def _backward(ctx: Any, grad: Tensor) -> tuple[None, ...]:
    return (None,) * 11


OP = define(
    "w8a8_linear(Tensor x, Tensor values, Tensor row_ptr, Tensor columns, Tensor row_sums, Tensor? bias, "
    "int out_features, int in_features, str picks, str activation, Tensor scale) -> Tensor",
    reference=w8a8_linear_reference,
    fake=_fake,
    setup_context=_setup,
    backward=_backward,
)


def w8a8_linear(
    x: Tensor,
    packed: PackedWeight,
    bias: Tensor | None = None,
    activation: str = "none",
    *,
    impl: str | None = None,
) -> Tensor:
    """A linear layer in int8 arithmetic: weights with a scale a row, activations with a scale a token.

    ``y[t, n] = act(s[t] * scale[n] * sum_k q[t, k] * w[n, k] + b[n])``, ``s[t] = max |x[t]| / 127``,
    ``q[t, k] = round(x[t, k] * (1 / s[t]))``

    Args:
        x: [..., K], float32 or bfloat16 for the C++ kernel. A token is everything but the last dimension.
        packed: the weight [N, K], quantised (``PackedWeight.quantize``), of a pattern that ``w8a8_picks`` takes:
            blocks whose rows are a multiple of 16, ``n:mv16``, ``2:4``.
        bias: [N], float32 or bfloat16, or None.
        activation: ``"none"``, ``"relu"``, ``"gelu"``, ``"gelu_tanh"`` or ``"silu"``.
        impl: insist on an implementation.

    Returns:
        y [..., N] in the dtype of x.

    Raises:
        ValueError, TypeError: if shapes, dtypes or devices do not fit, ``packed`` is not valid or not quantised, or
            its pattern has no integer kernel.
        RuntimeError: if a gradient is asked for.

    Notes:
        Rounding is half to even and symmetric, -127 to 127. Sums are exact in int32 and the scales are applied in one
        order, so without activation and with ``relu`` the result is the same bits at every ISA level, for every number
        of threads and as the reference's. A token of zeros gives ``act(b)``, and so
        does one of nothing above 3.8e-37, whose inverse scale overflows; one with a NaN or an infinity gives NaN
        for all of its outputs, as no scale fits it. The order of tokens does not matter: each has its own scale.
        This call lays the weight out anew each time; to run it often use ``ops.w8a8_prepare`` and
        ``ops.w8a8_linear.OP(x, *ops.w8a8_prepare(packed), bias, N, K, ops.w8a8_picks(packed.pattern), activation,
        packed.scale)``.
        Source: dynamic quantisation as ``torch.ao.nn.quantized.dynamic.Linear``, but symmetric and per token
        (Dettmers et al., "LLM.int8()", 2022).

    Example:
        >>> import torch
        >>> from evoprune_kernels import formats, ops
        >>> packed = formats.pack(torch.tensor([[0.0, 5.0, 0.0, 6.0]]), "2:4").quantize()
        >>> y = ops.w8a8_linear(torch.ones(1, 4), packed)
        >>> round(y.item(), 1)
        11.0
    """
    packed.validate()
    picks, tensors = w8a8_picks(packed.pattern), w8a8_prepare(packed, impl=impl)
    check_linear(x, packed, bias, activation)
    numbers = (*packed.shape, picks, activation, packed.scale)
    return OP(x, *tensors, bias, *numbers, impl=impl)


w8a8_linear.OP = OP  # type: ignore[attr-defined]
