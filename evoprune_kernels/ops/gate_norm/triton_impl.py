"""The launches of ``gate_norm`` and its backward in Triton; the kernels and their drawing are in ``kernels``."""

from __future__ import annotations

import math
from typing import Any

import torch
import triton
from torch import Tensor

from evoprune_kernels.ops._channels import memory_format
from evoprune_kernels.ops.channel_gate.triton_impl import (
    COLUMNS,
    PART,
    PART_ROWS,
    PARTS,
    TILE,
    channel_gate_backward_unfit,
    channel_gate_sums_kernel,
    is_in_rows,
)
from evoprune_kernels.ops.gate_norm.kernels.triton_impl import (
    gate_norm_combine_kernel,
    gate_norm_grad_kernel,
    gate_norm_kernel,
    gate_norm_statistics_kernel,
    gate_norm_sums_kernel,
)
from evoprune_kernels.ops.gate_norm.reference import values_per_channel


class Layout:
    """How entities and places of x, which is not empty and in its memory format, are split among programs."""

    def __init__(self, x: Tensor, per_sample: bool) -> None:
        self.per_sample, self.channels, inner = per_sample, x.shape[1], math.prod(x.shape[2:])
        self.in_rows = is_in_rows(x)
        self.groups = x.shape[0] if per_sample else 1
        if self.in_rows:
            self.length, self.part = x.shape[0] * inner // self.groups, PART_ROWS
            self.across = min(triton.next_power_of_2(self.channels), COLUMNS)
            self.along = TILE // self.across
            self.count = triton.cdiv(self.length, self.part)
            self.rows = self.groups * self.count
            self.planes = 0
            self.grid = self.rows, triton.cdiv(self.channels, self.across)
        else:
            self.length, self.part, self.planes = inner, PART, x.shape[0] * x.shape[1]
            self.along = min(triton.next_power_of_2(inner), TILE)
            self.across = min(TILE // self.along, triton.next_power_of_2(self.planes))
            self.count = triton.cdiv(inner, self.part)
            self.rows = x.shape[0] * self.count
            self.grid = triton.cdiv(self.planes, self.across), self.count

    @property
    def sizes(self) -> tuple[int, int, int, int, int]:
        return self.channels, self.length, self.planes, self.count, self.part

    @property
    def options(self) -> dict[str, Any]:
        return {
            "IN_ROWS": self.in_rows, "PER_SAMPLE": self.per_sample,
            "ACROSS": self.across, "ALONG": self.along, "enable_fp_fusion": True,
        }  # fmt: skip

    def sum_parts(self, parts: Tensor, groups: int) -> Tensor:
        """Parts [rows, k, C] -> sums [groups, k, C], in their order."""
        width = parts.shape[1] * self.channels
        sums = parts.new_empty(groups, *parts.shape[1:])
        columns = min(COLUMNS, triton.next_power_of_2(width))
        channel_gate_sums_kernel[(groups, triton.cdiv(width, columns))](
            parts, sums, self.rows // groups, width,
            PARTS=PARTS, COLUMNS=columns, enable_fp_fusion=True,
        )  # fmt: skip
        return sums


def gate_norm_unfit(
    x: Tensor,
    gates: Tensor,
    weight: Tensor | None,
    bias: Tensor | None,
    mean: Tensor | None,
    var: Tensor | None,
    eps: float,
    relu: bool,
) -> str | None:
    """Why the kernels cannot run, or None."""
    if why := channel_gate_backward_unfit(x, x, gates):
        return why
    for t in (weight, bias, mean, var):
        if t is not None and (t.shape != x.shape[1:2] or t.dtype not in (torch.float32, x.dtype)):
            wanted = f"[{x.shape[1]}] of float32 or {x.dtype}"
            return f"takes weight, bias, mean and var {wanted}, got {tuple(t.shape)} {t.dtype}"
    if (mean is None or var is None) and values_per_channel(x) < 2:
        return f"takes more than 1 value per channel when training, got {values_per_channel(x)}"
    return None


def _contiguous(*tensors: Tensor | None) -> list[Any]:
    return [None if t is None else t.contiguous() for t in tensors]


def gate_norm_triton(
    x: Tensor,
    gates: Tensor,
    weight: Tensor | None,
    bias: Tensor | None,
    mean: Tensor | None,
    var: Tensor | None,
    eps: float,
    relu: bool,
) -> tuple[Tensor, Tensor, Tensor]:
    """As ``gate_norm_reference``."""
    order = memory_format(x)
    x = x.contiguous(memory_format=order)
    y = torch.empty_like(x, memory_format=order)
    training = mean is None or var is None
    if mean is None or var is None:
        mean, var = (torch.empty(x.shape[1], dtype=torch.float32, device=x.device) for _ in "mv")
    else:
        mean, var = (t.to(torch.float32, copy=True).contiguous() for t in (mean, var))
    if y.numel() == 0:
        return y, mean, var
    layout, given = Layout(x, gates.dim() == 2), _contiguous(gates, weight, bias)
    if training:
        _statistics(x, given[0], mean, var, layout)
    gate_norm_kernel[layout.grid](
        x, *given, mean, var, y, *layout.sizes, eps, RELU=relu, **layout.options
    )
    return y, mean, var


def _statistics(x: Tensor, gates: Tensor, mean: Tensor, var: Tensor, layout: Layout) -> None:
    """Writes those of the gated x."""
    channels = layout.channels
    parts = torch.empty(layout.rows, 2, channels, dtype=torch.float32, device=x.device)
    gate_norm_statistics_kernel[layout.grid](x, gates, parts, *layout.sizes, **layout.options)
    columns = min(COLUMNS, triton.next_power_of_2(channels))
    gate_norm_combine_kernel[(triton.cdiv(channels, columns),)](
        parts, mean, var, layout.rows, channels, layout.count, layout.length, layout.part,
        PARTS=PARTS, COLUMNS=columns, enable_fp_fusion=True,
    )  # fmt: skip


def gate_norm_backward_unfit(
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
) -> str | None:
    """Why the kernels cannot run, or None."""
    if why := channel_gate_backward_unfit(grad, x, gates):
        return why
    return gate_norm_unfit(x, gates, weight, bias, mean, var, eps, relu)


def gate_norm_backward_triton(
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
    """As ``gate_norm_backward_reference``."""
    order, shape = memory_format(x), gates.shape
    x, grad = x.contiguous(memory_format=order), grad.contiguous(memory_format=order)
    dx = torch.empty_like(x, memory_format=order)
    given = _contiguous(gates, weight, bias, mean, var)
    sums = torch.zeros(2, x.shape[1], dtype=torch.float32, device=x.device)
    dgates = gates.new_zeros(shape if gates_too else (0,))
    if x.numel():
        layout = Layout(x, gates.dim() == 2)
        parts, gate_parts = (
            torch.empty(layout.rows, k, layout.channels, dtype=torch.float32, device=x.device)
            for k in (2, 3 if gates_too else 0)
        )
        gate_norm_sums_kernel[layout.grid](
            grad, x, *given, parts, gate_parts, *layout.sizes, eps,
            RELU=relu, GATES_TOO=gates_too, **layout.options,
        )  # fmt: skip
        sums = layout.sum_parts(parts, 1)[0]
        share = 1 / values_per_channel(x)
        gate_norm_grad_kernel[layout.grid](
            grad, x, *given, sums, dx, *layout.sizes, eps, share,
            RELU=relu, TRAINING=training, **layout.options,
        )  # fmt: skip
        if gates_too:
            of_gates = layout.sum_parts(gate_parts, layout.groups)
            mean_dz, mean_dz_xhat = sums * (share * training)
            du_x = of_gates[:, 0] - mean_dz * of_gates[:, 1] - mean_dz_xhat * of_gates[:, 2]
            factor = (var.float() + eps).rsqrt() * (1.0 if weight is None else weight.float())
            dgates = (du_x * factor).view(shape).to(gates.dtype)
    dbias, dweight = sums
    return (
        dx,
        dgates,
        dweight.clone() if weight is None else dweight.to(weight.dtype, copy=True),
        dbias.clone() if bias is None else dbias.to(bias.dtype, copy=True),
    )
