"""What every linear op shares: activation names, argument checks and the gradient of the activation.

``y = act(x W^T + b)``. The kernels apply bias and activation while the sums are still in registers, so the
pre-activation is not stored: backward computes it once more, except for ``none`` and ``relu``, which need only ``y``.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

import torch
from torch import Tensor
from torch.nn import functional as F

from evoprune_kernels._check import check, check_dtype, check_shape
from evoprune_kernels.formats import PackedWeight

#: names of the activations, in the order of csrc/core/activation.h
ACTIVATIONS = ("none", "relu", "gelu", "gelu_tanh", "silu")
#: how a packed weight is stored: as saved, or as the CPU kernels read it
LAYOUTS = ("canonical", "cpu")
#: those of an nm weight: also as the CUDA kernels read it
NM_LAYOUTS = (*LAYOUTS, "cuda")
#: dtypes of x and values that the CPU kernels take; those for CUDA take float16 as well
KERNEL_DTYPES = (torch.float32, torch.bfloat16)
#: stored narrower than x: dtype of the values -> dtypes of x; any other is its own
_DTYPES_OF_X = {
    torch.bfloat16: (torch.bfloat16, torch.float32),
    torch.int8: (*KERNEL_DTYPES, torch.float16),
}


def activate(z: Tensor, activation: str) -> Tensor:
    """``act(z)``."""
    if activation == "none":
        return z
    if activation == "relu":
        return F.relu(z)
    if activation == "gelu":
        return F.gelu(z)
    if activation == "gelu_tanh":
        return F.gelu(z, approximate="tanh")
    if activation == "silu":
        return F.silu(z)
    raise ValueError(f"expected activation in {ACTIVATIONS}, got {activation!r}")


def scaled(weight: Tensor, scale: Tensor | None, dtype: torch.dtype) -> Tensor:
    """A dense weight [N, K] of stored values in ``dtype``, its rows times ``scale`` where there is one."""
    return weight.to(dtype) if scale is None else (weight * scale[:, None]).to(dtype)


def linear_dense(
    x: Tensor, weight: Tensor, bias: Tensor | None, activation: str, scale: Tensor | None = None
) -> Tensor:
    """``act(x weight^T + bias)`` with bias and activation in float32 or better; the result in the dtype of x."""
    wide = torch.promote_types(x.dtype, torch.float32)
    bias = None if bias is None else bias.to(wide)
    product = F.linear(x.to(wide), scaled(weight, scale, wide), bias)
    return activate(product, activation).to(x.dtype)


def grad_of_preactivation(
    grad: Tensor, activation: str, output: Tensor, preactivation: Callable[[], Tensor]
) -> Tensor:
    """``grad * act'(z)``: from ``output`` for relu, else from ``preactivation()``, the op run again without act."""
    aten = torch.ops.aten
    if activation == "none":
        return grad
    if activation == "relu":
        return aten.threshold_backward(grad, output, 0)
    if activation == "silu":
        return aten.silu_backward(grad, preactivation())
    approximate = "tanh" if activation == "gelu_tanh" else "none"
    return aten.gelu_backward(grad, preactivation(), approximate=approximate)


def grad_of_bias(grad: Tensor, bias: Tensor) -> Tensor:
    """The gradient of the bias: ``grad`` [..., N] summed over the tokens in float32."""
    wide = torch.promote_types(grad.dtype, torch.float32)
    return grad.flatten(0, -2).sum(0, dtype=wide).to(bias.dtype)


def needs_preactivation(activation: str) -> bool:
    """Whether ``grad_of_preactivation`` will call for the pre-activation."""
    return activation not in ("none", "relu")


def check_linear(x: Tensor, packed: PackedWeight, bias: Tensor | None, activation: str) -> None:
    """Checks the arguments of a linear op. Raises ``ValueError`` or ``TypeError`` with both values."""
    check(activation in ACTIVATIONS, f"expected activation in {ACTIVATIONS}, got {activation!r}")
    out_features, in_features = packed.shape
    check(x.dim() >= 1, "expected x of 1 dimension or more, got 0")
    check(
        x.shape[-1] == in_features,
        f"expected x of shape [..., {in_features}], got {tuple(x.shape)}",
    )
    check_dtype(x, _DTYPES_OF_X.get(packed.dtype, (packed.dtype,)), "x")
    check(
        (packed.scale is None) == (packed.dtype != torch.int8),
        f"expected a scale for values of int8 and for no others, got values of {packed.dtype}",
    )
    check(x.device == packed.values.device, f"x on {x.device}, values on {packed.values.device}")
    if bias is not None:
        check_shape(bias, (out_features,), "bias")
        check_dtype(bias, dict.fromkeys((torch.float32, torch.bfloat16, x.dtype)), "bias")
        check(bias.device == x.device, f"bias on {bias.device}, x on {x.device}")


def linear_unfit(
    x: Tensor,
    values: Tensor,
    bias: Tensor | None,
    scale: Tensor | None,
    shape: tuple[int, int],
    activation: str,
    expected: Mapping[str, tuple[Tensor, tuple[int, ...]]],
) -> str | None:
    """Why the Triton kernels of a linear op cannot take these arguments, or None; ``expected``: tensors and shapes."""
    floats = (*KERNEL_DTYPES, torch.float16)
    if activation not in ACTIVATIONS:
        return f"takes activations {ACTIVATIONS}, got {activation!r}"
    if x.dtype not in floats or values.dtype not in (x.dtype, torch.bfloat16, torch.int8):
        return f"takes x of float32, float16 or bfloat16 and values no wider, got {x.dtype} and {values.dtype}"
    if values.dtype == torch.bfloat16 and x.dtype == torch.float16:
        return "takes no values of bfloat16 with x of float16"
    if x.dim() < 1 or x.shape[-1] != shape[1]:
        return f"takes x of shape [..., {shape[1]}], got {tuple(x.shape)}"
    if bias is not None and (tuple(bias.shape) != shape[:1] or bias.dtype not in floats):
        return f"takes a bias of shape {shape[:1]} and one of those dtypes, got {tuple(bias.shape)} and {bias.dtype}"
    if scale is not None and (tuple(scale.shape) != shape[:1] or scale.dtype != torch.float32):
        return f"takes a scale of shape {shape[:1]} and float32, got {tuple(scale.shape)} and {scale.dtype}"
    for name, (tensor, its_shape) in expected.items():
        if tuple(tensor.shape) != its_shape:
            return f"takes {name} of shape {its_shape}, got {tuple(tensor.shape)}"
    return None


def refuse_grad_of_scale(name: str, needs_grad: bool) -> None:
    """A quantised weight is for inference: raise ``RuntimeError`` if a gradient of its scale is asked for."""
    if needs_grad:
        raise RuntimeError(f"{name}: scale has no gradient; a quantised weight is for inference")


def check_layout(layout: str, layouts: tuple[str, ...] = LAYOUTS) -> None:
    """Raise ``ValueError`` unless ``layout`` is one of ``layouts``."""
    check(layout in layouts, f"expected layout in {layouts}, got {layout!r}")
