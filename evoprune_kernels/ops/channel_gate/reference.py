"""``channel_gate`` and its backward in plain torch: the truth, the fallback and the benchmark baseline."""

from __future__ import annotations

import torch
from torch import Tensor

from evoprune_kernels.ops._channels import memory_format, spread


def channel_gate_reference(x: Tensor, gates: Tensor) -> Tensor:
    """``y = x * gates``, 0 where a gate is 0; see ``channel_gate``."""
    wide = torch.promote_types(x.dtype, torch.float32)
    gate = spread(gates, x)
    y = (x.to(wide) * gate.to(wide)).to(x.dtype).masked_fill(gate == 0, 0.0)
    return y.contiguous(memory_format=memory_format(x))


def channel_gate_backward_reference(
    grad: Tensor, x: Tensor, gates: Tensor
) -> tuple[Tensor, Tensor]:
    """``(dx, dgates)``: ``dx = grad * gates``, ``dgates = sum of grad * x`` in float32 or better."""
    wide = torch.promote_types(x.dtype, torch.float32)
    gate = spread(gates, x)
    dx = (grad.to(wide) * gate.to(wide)).to(x.dtype).masked_fill(gate == 0, 0.0)
    summed = [d for d in range(x.dim()) if d != 1 and not (d == 0 and gates.dim() == 2)]
    products = grad.to(wide) * x.to(wide)
    sums = products.sum(summed) if summed else products
    return dx.contiguous(memory_format=memory_format(x)), sums.to(gates.dtype)
