"""``evoprune::gate_norm``: channel gates, batch norm and ReLU in two passes over memory each way."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from evoprune_kernels._check import check, check_dtype, check_shape
from evoprune_kernels.ops._channels import check_gates, gates_fit, memory_format
from evoprune_kernels.ops._op import define
from evoprune_kernels.ops.gate_norm.reference import (
    gate_norm_backward_reference,
    gate_norm_reference,
    values_per_channel,
)


def _wide(x: Tensor) -> torch.dtype:
    return torch.promote_types(x.dtype, torch.float32)


def _fake(x: Tensor, *_: Any) -> tuple[Tensor, Tensor, Tensor]:
    mean, var = (x.new_empty(x.shape[1], dtype=_wide(x)) for _ in range(2))
    return torch.empty_like(x, memory_format=memory_format(x)), mean, var


def _fake_backward(
    grad: Tensor,
    x: Tensor,
    gates: Tensor,
    weight: Tensor | None,
    bias: Tensor | None,
    mean: Tensor,
    var: Tensor,
    training: bool,
    eps: float,
    relu: bool,
    gates_too: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    dx = torch.empty_like(x, memory_format=memory_format(x))
    dgates = gates.new_empty(gates.shape if gates_too else (0,))
    dweight, dbias = (
        x.new_empty(x.shape[1], dtype=_wide(x) if t is None else t.dtype) for t in (weight, bias)
    )
    return dx, dgates, dweight, dbias


def _setup(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor, Tensor]) -> None:
    x, gates, weight, bias, given, _, ctx.eps, ctx.relu = inputs
    ctx.training = given is None
    ctx.save_for_backward(x, gates, weight, bias, *output[1:])
    ctx.mark_non_differentiable(*output[1:])


def _backward(ctx: Any, grad: Tensor, *_: Any) -> tuple[Tensor | None, ...]:
    gates_too = ctx.needs_input_grad[1]
    rest = ctx.training, ctx.eps, ctx.relu, gates_too
    dx, dgates, dweight, dbias = BACKWARD(grad, *ctx.saved_tensors, *rest)
    _, _, weight, bias, _, _ = ctx.saved_tensors
    return (
        dx,
        dgates if gates_too else None,
        None if weight is None else dweight,
        None if bias is None else dbias,
        *(None,) * 4,
    )


def _setup_twice(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
    ctx.save_for_backward(*inputs[:7])
    ctx.rest = inputs[7:]


def _alias(t: Any) -> Any:
    """Another name of a tensor, so that only the direct way to it counts; None for None."""
    if t is None:
        return None
    return t.view_as(t) if t.requires_grad else t.detach().requires_grad_()


def _backward_twice(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
    """Through the reference: a penalty on gradients is right, not fast."""
    *tensors, mean, var = ctx.saved_tensors
    training, eps, relu, gates_too = ctx.rest
    with torch.enable_grad():
        inputs = [_alias(t) for t in tensors]
        grad, x, gates, weight, bias = inputs
        if training:
            _, mean, var = gate_norm_reference(x, gates, weight, bias, None, None, eps, relu)
        outputs = gate_norm_backward_reference(
            grad, x, gates, weight, bias, mean, var, training, eps, relu, gates_too
        )
        pairs = [(o, g) for o, g in zip(outputs, grads, strict=True) if o.requires_grad]
        found = torch.autograd.grad(
            [o for o, _ in pairs],
            [t for t in inputs if t is not None],
            [g for _, g in pairs],
            create_graph=True,
            allow_unused=True,
        )
    of = iter(found)
    return (*(None if t is None else next(of) for t in inputs), *(None,) * 6)


OP = define(
    "gate_norm(Tensor x, Tensor gates, Tensor? weight, Tensor? bias, Tensor? mean, Tensor? var, "
    "float eps, bool relu) -> (Tensor, Tensor, Tensor)",
    reference=gate_norm_reference,
    fake=_fake,
    setup_context=_setup,
    backward=_backward,
)
BACKWARD = define(
    "gate_norm_backward(Tensor grad, Tensor x, Tensor gates, Tensor? weight, Tensor? bias, Tensor mean, Tensor var, "
    "bool training, float eps, bool relu, bool gates_too) -> (Tensor, Tensor, Tensor, Tensor)",
    reference=gate_norm_backward_reference,
    fake=_fake_backward,
    setup_context=_setup_twice,
    backward=_backward_twice,
)


def gate_norm(
    x: Tensor,
    gates: Tensor,
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    running_mean: Tensor | None = None,
    running_var: Tensor | None = None,
    *,
    training: bool = False,
    momentum: float = 0.1,
    eps: float = 1e-5,
    relu: bool = False,
    impl: str | None = None,
) -> Tensor:
    """Gate every channel, then batch norm, then ReLU if wanted: ``channel_gate``, ``F.batch_norm``, ``F.relu`` as one.

    ``y = relu((g x - mean) / sqrt(var + eps) * weight + bias)``, mean and var those of ``g x``

    Args:
        x: [B, C, ...], contiguous or channels_last (anything else is copied first), a float dtype.
        gates: [C], or [B, C] for gates of each sample; any numbers; float32 or the dtype of x.
        weight, bias: [C], float32 or the dtype of x; None: 1 and 0.
        running_mean, running_var: [C], float32 or the dtype of x. In training they are updated in place if they are
            given; otherwise they are what is used.
        training: use the statistics of the batch.
        momentum: share of the batch in the running statistics; the variance counts with n / (n - 1), as in torch.
        eps: added to the variance.
        relu: a ReLU behind the norm.
        impl: insist on an implementation.

    Returns:
        y [B, C, ...] in the dtype and memory format of x.

    Raises:
        ValueError: if the shapes do not fit, the devices differ, there are no running statistics to use, or a channel
            has one value only in training.
        TypeError: if the dtypes do not fit.

    Notes:
        The mean and variance of ``g x`` follow from those of x, so that memory is walked over twice forward and twice
        backward. All arithmetic is in float32 (float64 for float64) and rounded once. Gradients for x, gates, weight
        and bias; sums in a fixed order, so that two runs give the same bits. A closed channel (gate 0 or -0.0) counts
        as 0 whatever x holds: y is constant there and dx is +0.0; its gate has the gradient of the product. ReLU
        passes a gradient where its input is above 0, before the rounding to a narrow dtype. A second derivative
        is right, and as slow as plain torch. On a GPU the Triton kernels run, for float64 plain torch.

    Source:
        Ioffe and Szegedy, "Batch Normalization", ICML 2015.

    Example:
        >>> import torch
        >>> from evoprune_kernels import ops
        >>> x = torch.tensor([[[1.0, 3.0], [5.0, 7.0]]])
        >>> ops.gate_norm(x, torch.tensor([1.0, 0.0]), bias=torch.tensor([0.0, 0.5]), training=True, eps=0.0001)
        tensor([[[-0.9999,  0.9999],
                 [ 0.5000,  0.5000]]])
    """
    per_channel = weight, bias, running_mean, running_var
    if not _fit(x, gates, per_channel):
        _refuse(x, gates, *per_channel)
    mean, var = (None, None) if training else (running_mean, running_var)
    count = values_per_channel(x)
    if training and count < 2:
        raise ValueError(f"expected more than 1 value per channel when training, got {count}")
    if not training and (mean is None or var is None):
        raise ValueError("expected running_mean and running_var unless training, got None")
    y, mean, var = OP(x, gates, weight, bias, mean, var, eps, relu, impl=impl)
    if training and running_mean is not None:
        running_mean.lerp_(mean.to(running_mean.dtype), momentum)
    if training and running_var is not None:
        unbiased = momentum * (count / (count - 1))
        running_var.mul_(1 - momentum).add_(var.to(running_var.dtype), alpha=unbiased)
    return y


def _fit(x: Tensor, gates: Tensor, per_channel: tuple[Tensor | None, ...]) -> bool:
    """Whether the shapes, dtypes and devices do."""
    given = [t for t in per_channel if t is not None]
    return gates_fit(x, gates) and all(
        t.shape == x.shape[1:2] and t.dtype in (torch.float32, x.dtype) and t.device == x.device
        for t in given
    )


def _refuse(
    x: Tensor,
    gates: Tensor,
    weight: Tensor | None,
    bias: Tensor | None,
    running_mean: Tensor | None,
    running_var: Tensor | None,
) -> None:
    """Says what is wrong; apart, since words take longer than a small norm."""
    check_gates(x, gates)
    named = {
        "weight": weight,
        "bias": bias,
        "running_mean": running_mean,
        "running_var": running_var,
    }
    for name, tensor in named.items():
        if tensor is not None:
            check_shape(tensor, tuple(x.shape[1:2]), name)
    for name, tensor in named.items():
        if tensor is not None:
            check_dtype(tensor, dict.fromkeys((torch.float32, x.dtype)), name)
            check(tensor.device == x.device, f"{name} on {tensor.device}, x on {x.device}")


gate_norm.OP = OP  # type: ignore[attr-defined]
gate_norm.BACKWARD = BACKWARD  # type: ignore[attr-defined]
