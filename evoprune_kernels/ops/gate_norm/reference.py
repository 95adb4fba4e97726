"""``gate_norm`` and its backward in plain torch: the truth, the fallback and the benchmark baseline."""

from __future__ import annotations

import torch
from torch import Tensor

from evoprune_kernels._check import check
from evoprune_kernels.ops._channels import memory_format, spread


def _across(channels: Tensor, x: Tensor) -> Tensor:
    """[C] as a view that multiplies ``x`` [B, C, ...]."""
    return channels.view(-1, *[1] * (x.dim() - 2))


def _gated(x: Tensor, gates: Tensor) -> Tensor:
    """``u = x * gates`` in float32 or better, 0 where a gate is 0."""
    wide = torch.promote_types(x.dtype, torch.float32)
    gate = spread(gates, x)
    return (x.to(wide) * gate.to(wide)).masked_fill(gate == 0, 0.0)


def _normalized(u: Tensor, mean: Tensor, var: Tensor, eps: float) -> tuple[Tensor, Tensor]:
    """``(xhat, 1 / std)``."""
    inverse = (var.to(u.dtype) + eps).rsqrt()
    return (u - _across(mean.to(u.dtype), u)) * _across(inverse, u), inverse


def _affine(xhat: Tensor, weight: Tensor | None, bias: Tensor | None) -> Tensor:
    if weight is not None:
        xhat = xhat * _across(weight.to(xhat.dtype), xhat)
    return xhat if bias is None else xhat + _across(bias.to(xhat.dtype), xhat)


def values_per_channel(x: Tensor) -> int:
    """How many values of x [B, C, ...] one channel has."""
    return x.shape[0] * x.shape[2:].numel()


def gate_norm_reference(
    x: Tensor,
    gates: Tensor,
    weight: Tensor | None,
    bias: Tensor | None,
    mean: Tensor | None,
    var: Tensor | None,
    eps: float,
    relu: bool,
) -> tuple[Tensor, Tensor, Tensor]:
    """``(y, mean, var)``; without ``mean`` and ``var`` those of the batch; see ``gate_norm``."""
    u = _gated(x, gates)
    if mean is None or var is None:
        count = values_per_channel(x)
        check(count > 1, f"expected more than 1 value per channel when training, got {count}")
        dims = [d for d in range(x.dim()) if d != 1]
        mean, var = u.mean(dims), u.var(dims, correction=0)
    else:
        mean, var = mean.to(u.dtype, copy=True), var.to(u.dtype, copy=True)
    y = _affine(_normalized(u, mean, var, eps)[0], weight, bias)
    y = (y.relu() if relu else y).to(x.dtype)
    return y.contiguous(memory_format=memory_format(x)), mean, var


def gate_norm_backward_reference(
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
    """``(dx, dgates, dweight, dbias)``, sums in float32 or better; ``dgates`` is [0] unless ``gates_too``."""
    u = _gated(x, gates)
    xhat, inverse = _normalized(u, mean, var, eps)
    dz = grad.to(u.dtype)
    if relu:
        dz = dz.masked_fill(_affine(xhat, weight, bias) <= 0, 0.0)
    dims = [d for d in range(x.dim()) if d != 1]
    dbias, dweight = dz.sum(dims), (dz * xhat).sum(dims)
    du = dz
    if training:
        count = values_per_channel(x)
        du = dz - _across(dbias / count, u) - xhat * _across(dweight / count, u)
    factor = inverse if weight is None else inverse * weight.to(u.dtype)
    du = du * _across(factor, u)
    gate = spread(gates, x)
    dx = (du * gate.to(u.dtype)).to(x.dtype).masked_fill(gate == 0, 0.0)
    dgates = gates.new_zeros(0)
    if gates_too:
        summed = dims if gates.dim() == 1 else dims[1:]
        products = du * x.to(u.dtype)
        dgates = (products.sum(summed) if summed else products).to(gates.dtype)
    dweight = dweight if weight is None else dweight.to(weight.dtype)
    dbias = dbias if bias is None else dbias.to(bias.dtype)
    return dx.contiguous(memory_format=memory_format(x)), dgates, dweight, dbias
