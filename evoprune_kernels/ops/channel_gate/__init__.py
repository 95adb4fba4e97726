"""``evoprune::channel_gate``: every channel of an activation times its gate; closed channels are exact zeros."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from evoprune_kernels.ops._channels import check_gates, gates_fit, memory_format, spread
from evoprune_kernels.ops._op import define
from evoprune_kernels.ops.channel_gate.reference import (
    channel_gate_backward_reference,
    channel_gate_reference,
)


def _fake(x: Tensor, gates: Tensor) -> Tensor:
    return torch.empty_like(x, memory_format=memory_format(x))


def _fake_backward(grad: Tensor, x: Tensor, gates: Tensor) -> tuple[Tensor, Tensor]:
    dgates = torch.empty_like(gates, memory_format=torch.contiguous_format)
    return torch.empty_like(x, memory_format=memory_format(x)), dgates


def _setup(ctx: Any, inputs: tuple[Tensor, Tensor], output: Tensor) -> None:
    x, gates = inputs
    ctx.save_for_backward(x if ctx.needs_input_grad[1] else None, gates)


def _backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, Tensor | None]:
    x, gates = ctx.saved_tensors
    if not ctx.needs_input_grad[1]:  # the same product, which does not read closed channels
        return OP(grad, gates), None
    return BACKWARD(grad, x, gates)


def _setup_twice(ctx: Any, inputs: tuple[Tensor, ...], output: tuple[Tensor, Tensor]) -> None:
    ctx.save_for_backward(*inputs)


def _backward_twice(ctx: Any, d_dx: Tensor, d_dgates: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    grad, x, gates = ctx.saved_tensors
    gated, grad_gates = BACKWARD(d_dx, grad, gates)
    d_sums = spread(d_dgates, x).to(x.dtype)
    return gated + x * d_sums, grad * d_sums, grad_gates


OP = define(
    "channel_gate(Tensor x, Tensor gates) -> Tensor",
    reference=channel_gate_reference,
    fake=_fake,
    setup_context=_setup,
    backward=_backward,
)
BACKWARD = define(
    "channel_gate_backward(Tensor grad, Tensor x, Tensor gates) -> (Tensor, Tensor)",
    reference=channel_gate_backward_reference,
    fake=_fake_backward,
    setup_context=_setup_twice,
    backward=_backward_twice,
)


def channel_gate(x: Tensor, gates: Tensor, *, impl: str | None = None) -> Tensor:
    """Multiply every channel by its gate; a gate of 0 closes its channel.

    ``y[b, c, ...] = x[b, c, ...] * g``, ``g = gates[c]`` or ``gates[b, c]``; ``y = 0`` where ``g == 0``

    Args:
        x: [B, C, ...], contiguous or channels_last (anything else is copied first), a float dtype; the CUDA kernels
            take float32, float16 and bfloat16.
        gates: [C], or [B, C] for gates of each sample; float32 or the dtype of x.
        impl: insist on an implementation.

    Returns:
        y [B, C, ...] in the dtype and memory format of x.

    Raises:
        ValueError: if the shapes do not fit, or the devices differ.
        TypeError: if the dtypes do not fit.

    Notes:
        Products in float32, rounded once. Gradients: ``dx = dy * g``, ``dgates`` is the sum of ``dy * x`` over what
        shares the gate, in float32 and in a fixed order, so that two runs give the same bits; the gradient of a closed
        gate is that sum too, so it can open again. A closed channel (gate 0 or -0.0) gives +0.0 in y and in dx
        whatever x and dy hold, NaN and infinity included, where a product would give NaN or -0.0: so it need not be
        read. Differentiable twice.

    Source:
        Liu et al., "Learning Efficient Convolutional Networks through Network Slimming", ICCV 2017.

    Example:
        >>> import torch
        >>> from evoprune_kernels import ops
        >>> x = torch.tensor([[[[1.0, 2.0]], [[float("nan"), 4.0]]]])
        >>> ops.channel_gate(x, torch.tensor([0.5, 0.0]))
        tensor([[[[0.5000, 1.0000]],
        <BLANKLINE>
                 [[0.0000, 0.0000]]]])
    """
    if not gates_fit(x, gates):
        check_gates(x, gates)
    return OP(x, gates, impl=impl)


channel_gate.OP = OP  # type: ignore[attr-defined]
channel_gate.BACKWARD = BACKWARD  # type: ignore[attr-defined]
