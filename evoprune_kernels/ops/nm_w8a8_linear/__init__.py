"""``evoprune::nm_w8a8_linear``: y = act(x W^T + b) with a 2:4 weight of int8 and int8 activations, on tensor cores."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from evoprune_kernels._check import check
from evoprune_kernels.formats import NMWeight
from evoprune_kernels.ops._linear import check_linear
from evoprune_kernels.ops._op import define
from evoprune_kernels.ops.nm_prepare_cuda import nm_prepare_cuda
from evoprune_kernels.ops.nm_w8a8_linear.reference import nm_w8a8_linear_reference
from evoprune_kernels.ops.w8a8_prepare import MAX_COLUMNS


def _fake(
    x: Tensor,
    values: Tensor,
    meta: Tensor,
    bias: Tensor | None,
    out_features: int,
    in_features: int,
    activation: str,
    scale: Tensor,
) -> Tensor:
    return x.new_empty(*x.shape[:-1], out_features)


def _setup(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    if any(ctx.needs_input_grad):
        raise RuntimeError(
            "nm_w8a8_linear: rounded activations have no gradient; it is for inference (torch.no_grad())"
        )


def _backward(ctx: Any, grad: Tensor) -> tuple[None, ...]:
    return (None,) * 8


OP = define(
    "nm_w8a8_linear(Tensor x, Tensor values, Tensor meta, Tensor? bias, int out_features, int in_features, "
    "str activation, Tensor scale) -> Tensor",
    reference=nm_w8a8_linear_reference,
    fake=_fake,
    setup_context=_setup,
    backward=_backward,
)


def nm_w8a8_linear(
    x: Tensor,
    packed: NMWeight,
    bias: Tensor | None = None,
    activation: str = "none",
    *,
    impl: str | None = None,
) -> Tensor:
    """A linear layer in int8 arithmetic with a 2:4 weight: the ``w8a8_linear`` of the tensor cores.

    ``y[t, n] = act(s[t] * scale[n] * sum_k q[t, k] * w[n, k] + b[n])``, ``s[t] = max |x[t]| / 127``,
    ``q[t, k] = round(x[t, k] * (1 / s[t]))``

    Args:
        x: [..., K], float32, float16 or bfloat16. A token is everything but the last dimension.
        packed: the weight [N, K] of pattern 2:4 or 2:4v16, quantised (``PackedWeight.quantize``).
        bias: [N], float32 or bfloat16, or None.
        activation: ``"none"``, ``"relu"``, ``"gelu"``, ``"gelu_tanh"`` or ``"silu"``.
        impl: insist on an implementation.

    Returns:
        y [..., N] in the dtype of x.

    Raises:
        ValueError, TypeError: if shapes, dtypes or devices do not fit, ``packed`` is not valid or not quantised, its
            pattern is another, or it has more columns than int32 sums can take (133144).
        RuntimeError: if a gradient is asked for.

    Notes:
        Rounding, sums and the order of the scales are those of ``w8a8_linear``: the results of the two are the same
        bits without activation and with ``relu``. On a CPU this op is the reference, for tests; use ``w8a8_linear``.
        This call lays the weight out anew each time; to run it often use ``ops.nm_prepare_cuda`` and
        ``ops.nm_w8a8_linear.OP(x, *ops.nm_prepare_cuda(packed), bias, N, K, activation, packed.scale)``.
        Source: Dettmers et al., "LLM.int8()", 2022.

    Example:
        >>> import torch
        >>> from evoprune_kernels import formats, ops
        >>> packed = formats.pack(torch.tensor([[0.0, 5.0, 0.0, 6.0]]), "2:4").quantize()
        >>> y = ops.nm_w8a8_linear(torch.ones(1, 4), packed)
        >>> round(y.item(), 1)
        11.0
    """
    packed.validate()
    columns = packed.shape[1]
    check(
        packed.scale is not None,
        "expected an int8 weight with a scale, got one without: quantize() it",
    )
    check(
        columns <= MAX_COLUMNS, f"expected a weight of up to {MAX_COLUMNS} columns, got {columns}"
    )
    check_linear(x, packed, bias, activation)
    tensors = nm_prepare_cuda(packed, impl=impl)
    return OP(x, *tensors, bias, *packed.shape, activation, packed.scale, impl=impl)


nm_w8a8_linear.OP = OP  # type: ignore[attr-defined]
