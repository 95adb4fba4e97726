"""``channel_gate`` and its backward in Triton, NCHW and channels_last.

``y = x * gate``, 0 where the gate is 0; ``dx = dy * gate``, ``dgate`` = sum of ``dy * x`` over what shares the gate

::

    forward   flat memory, a tile a program             the gate of an element: by its plane, or by its place in a row
    planes    NCHW: planes [B * C, inner]               program = PLANES planes x a part of inner: a sum a plane
    rows      channels_last: rows [B * inner, C]        program = COLUMNS channels x a part of the rows of a sample
              (also [B, C] activations)                 (of all samples, where they share gates): a sum a channel
    sums      parts [groups, count, C] -> gates         program = COLUMNS gates, the parts in their order

Bound by memory: dy and x are read once, dx is written once. Forward does not read closed channels. fp32 products and
sums, in an order that depends on the shape alone: two runs give the same bits. dgate of a closed gate is summed as any.
Source: Liu et al., "Learning Efficient Convolutional Networks through Network Slimming", ICCV 2017.
"""

from __future__ import annotations

import math

import torch
import triton
import triton.language as tl
from torch import Tensor

from evoprune_kernels.ops._channels import memory_format
from evoprune_kernels.ops.triton_impl import DTYPES

#: elements of a tile, with four warps: eight a thread
TILE = 1024
#: elements of a plane that one program sums, and rows of a channel
PART, PART_ROWS = 4096, 256
#: planes, and places in a sample and in a channel, are int32
MAX_INDEX = 2**30
#: places of a plane that is summed in parts: these are an axis of the grid
MAX_PLACES = 65535 * PART
#: channels of a tile of rows, most; parts that are added at a time
COLUMNS, PARTS = 64, 32


# ---- kernels ----
@triton.jit
def gated(value, gate):
    """``value * gate`` in fp32, +0.0 where the gate is 0, whatever the value is."""
    return tl.where(gate == 0.0, 0.0, value.to(tl.float32) * gate)


@triton.jit
def channel_gate_kernel(
    x_ptr, gates_ptr, y_ptr, size, channels, inner,
    LAST: tl.constexpr, PER_SAMPLE: tl.constexpr, TILE: tl.constexpr,
):  # fmt: skip
    begin = tl.program_id(0).to(tl.int64) * TILE
    lane = tl.arange(0, TILE)
    if LAST:  # place in a row of channels
        index = ((begin % channels).to(tl.int32) + lane) % channels
        if PER_SAMPLE:
            sample = channels * inner  # elements
            index += ((begin % sample).to(tl.int32) + lane) // sample * channels
            index += (begin // sample).to(tl.int32) * channels
    else:
        index = (begin // inner).to(tl.int32) + ((begin % inner).to(tl.int32) + lane) // inner
        if not PER_SAMPLE:
            index = index % channels
    at = begin + lane
    gate = tl.load(gates_ptr + index, mask=at < size, other=0.0).to(tl.float32)
    x = tl.load(x_ptr + at, mask=(at < size) & (gate != 0.0), other=0.0)
    tl.store(y_ptr + at, gated(x, gate).to(y_ptr.dtype.element_ty), mask=at < size)


@triton.jit
def channel_gate_planes_kernel(
    grad_ptr, x_ptr, gates_ptr, dx_ptr, parts_ptr, planes, channels, inner, part,
    PER_SAMPLE: tl.constexpr, PLANES: tl.constexpr, WIDTH: tl.constexpr,
):  # fmt: skip
    plane = tl.program_id(0) * PLANES + tl.arange(0, PLANES)
    exists = plane < planes
    index = plane if PER_SAMPLE else plane % channels
    gate = tl.load(gates_ptr + index, mask=exists, other=0.0).to(tl.float32)[:, None]
    begin = tl.program_id(1) * part
    total = tl.zeros((PLANES, WIDTH), tl.float32)
    for start in range(begin, tl.minimum(begin + part, inner), WIDTH):
        place = start + tl.arange(0, WIDTH)[None, :]
        inside = exists[:, None] & (place < inner)
        at = plane.to(tl.int64)[:, None] * inner + place
        grad = tl.load(grad_ptr + at, mask=inside, other=0.0).to(tl.float32)
        total += grad * tl.load(x_ptr + at, mask=inside, other=0.0).to(tl.float32)
        tl.store(dx_ptr + at, gated(grad, gate).to(dx_ptr.dtype.element_ty), mask=inside)
    # parts [samples, parts of a plane, channels]
    row = plane // channels * tl.num_programs(1) + tl.program_id(1)
    tl.store(parts_ptr + row * channels + plane % channels, tl.sum(total, 1), mask=exists)


@triton.jit
def channel_gate_rows_kernel(
    grad_ptr, x_ptr, gates_ptr, dx_ptr, parts_ptr, channels, rows, part, count,
    PER_SAMPLE: tl.constexpr, ROWS: tl.constexpr, COLUMNS: tl.constexpr,
):  # fmt: skip
    """A group of ``rows`` rows has ``count`` parts; the grid is (groups * count, tiles of channels)."""
    channel = tl.program_id(1) * COLUMNS + tl.arange(0, COLUMNS)
    exists = channel < channels
    group = tl.program_id(0) // count
    index = group * channels + channel if PER_SAMPLE else channel
    gate = tl.load(gates_ptr + index, mask=exists, other=0.0).to(tl.float32)[None, :]
    begin = tl.program_id(0) % count * part
    total = tl.zeros((ROWS, COLUMNS), tl.float32)
    for start in range(begin, tl.minimum(begin + part, rows), ROWS):
        row = start + tl.arange(0, ROWS)[:, None]
        inside = (row < rows) & exists[None, :]
        at = (group.to(tl.int64) * rows + row) * channels + channel[None, :]
        grad = tl.load(grad_ptr + at, mask=inside, other=0.0).to(tl.float32)
        total += grad * tl.load(x_ptr + at, mask=inside, other=0.0).to(tl.float32)
        tl.store(dx_ptr + at, gated(grad, gate).to(dx_ptr.dtype.element_ty), mask=inside)
    tl.store(parts_ptr + tl.program_id(0) * channels + channel, tl.sum(total, 0), mask=exists)


@triton.jit
def channel_gate_sums_kernel(
    parts_ptr, dgates_ptr, count, channels, PARTS: tl.constexpr, COLUMNS: tl.constexpr
):
    channel = tl.program_id(1) * COLUMNS + tl.arange(0, COLUMNS)
    exists = channel < channels
    group = tl.program_id(0)
    total = tl.zeros((PARTS, COLUMNS), tl.float32)
    for start in range(0, count, PARTS):
        part = start + tl.arange(0, PARTS)[:, None]
        at = (group.to(tl.int64) * count + part) * channels + channel[None, :]
        total += tl.load(parts_ptr + at, mask=(part < count) & exists[None, :], other=0.0)
    sums = tl.sum(total, 0).to(dgates_ptr.dtype.element_ty)
    tl.store(dgates_ptr + group * channels + channel, sums, mask=exists)


# ---- launches ----
def is_in_rows(x: Tensor) -> bool:
    """Whether the channels of x follow each other in memory, once x is stored in its ``memory_format``."""
    return math.prod(x.shape[2:]) == 1 or memory_format(x) == torch.channels_last


def channel_gate_unfit(x: Tensor, gates: Tensor) -> str | None:
    """Why the kernel cannot run, or None."""
    if x.dim() < 2 or tuple(gates.shape) not in (tuple(x.shape[1:2]), tuple(x.shape[:2])):
        return f"takes gates [C] or [B, C] of x, got {tuple(gates.shape)} and {tuple(x.shape)}"
    if x.dtype not in DTYPES or gates.dtype not in (torch.float32, x.dtype):
        return f"takes x of float32, float16 or bfloat16 and gates so or float32, got {x.dtype} and {gates.dtype}"
    inner = math.prod(x.shape[2:])
    if max(x.shape[1] * inner, x.shape[0] * inner, x.shape[0] * x.shape[1]) >= MAX_INDEX:
        return f"takes less than {MAX_INDEX} planes, elements of a sample and of a channel, got {tuple(x.shape)}"
    return None


def channel_gate_triton(x: Tensor, gates: Tensor) -> Tensor:
    """As ``channel_gate_reference``."""
    order = memory_format(x)
    x, gates = x.contiguous(memory_format=order), gates.contiguous()
    y = torch.empty_like(x, memory_format=order)
    if y.numel() == 0:
        return y
    inner = math.prod(x.shape[2:])
    channel_gate_kernel[(triton.cdiv(y.numel(), TILE),)](
        x, gates, y, y.numel(), x.shape[1], inner,
        LAST=is_in_rows(x), PER_SAMPLE=gates.dim() == 2, TILE=TILE, enable_fp_fusion=True,
    )  # fmt: skip
    return y


def channel_gate_backward_unfit(grad: Tensor, x: Tensor, gates: Tensor) -> str | None:
    """Why the kernels cannot run, or None."""
    if grad.shape != x.shape or grad.dtype != x.dtype:
        return f"takes grad like x, got {tuple(grad.shape)} {grad.dtype} and {tuple(x.shape)} {x.dtype}"
    if math.prod(x.shape[2:]) > MAX_PLACES:
        return f"takes up to {MAX_PLACES} places of a channel, got {tuple(x.shape)}"
    return channel_gate_unfit(x, gates)


def channel_gate_backward_triton(grad: Tensor, x: Tensor, gates: Tensor) -> tuple[Tensor, Tensor]:
    """As ``channel_gate_backward_reference``."""
    order, per_sample = memory_format(x), gates.dim() == 2
    in_rows = is_in_rows(x)
    x, grad = x.contiguous(memory_format=order), grad.contiguous(memory_format=order)
    gates, dx = gates.contiguous(), torch.empty_like(x, memory_format=order)
    dgates = torch.empty_like(gates)
    if x.numel() == 0:
        return dx, dgates.zero_()
    launch = _sum_rows if in_rows else _sum_planes
    parts = launch(grad, x, gates, dx, per_sample)
    groups, channels = (x.shape[0] if per_sample else 1), x.shape[1]
    columns = min(COLUMNS, triton.next_power_of_2(channels))
    channel_gate_sums_kernel[(groups, triton.cdiv(channels, columns))](
        parts, dgates, parts.numel() // (groups * channels), channels,
        PARTS=PARTS, COLUMNS=columns, enable_fp_fusion=True,
    )  # fmt: skip
    return dx, dgates


def _sum_planes(grad: Tensor, x: Tensor, gates: Tensor, dx: Tensor, per_sample: bool) -> Tensor:
    """Writes dx; returns the parts of the sums."""
    planes, channels, inner = x.shape[0] * x.shape[1], x.shape[1], math.prod(x.shape[2:])
    width = min(triton.next_power_of_2(inner), TILE)
    at_once = min(TILE // width, triton.next_power_of_2(planes))
    count = triton.cdiv(inner, PART)
    parts = torch.empty(x.shape[0], count, channels, dtype=torch.float32, device=x.device)
    channel_gate_planes_kernel[(triton.cdiv(planes, at_once), count)](
        grad, x, gates, dx, parts, planes, channels, inner, PART,
        PER_SAMPLE=per_sample, PLANES=at_once, WIDTH=width, enable_fp_fusion=True,
    )  # fmt: skip
    return parts


def _sum_rows(grad: Tensor, x: Tensor, gates: Tensor, dx: Tensor, per_sample: bool) -> Tensor:
    """Writes dx; returns the parts of the sums."""
    groups, channels = (x.shape[0] if per_sample else 1), x.shape[1]
    rows = x.numel() // (channels * groups)
    columns = min(triton.next_power_of_2(channels), COLUMNS)
    count = triton.cdiv(rows, PART_ROWS)
    parts = torch.empty(groups, count, channels, dtype=torch.float32, device=x.device)
    channel_gate_rows_kernel[(groups * count, triton.cdiv(channels, columns))](
        grad, x, gates, dx, parts, channels, rows, PART_ROWS, count,
        PER_SAMPLE=per_sample, ROWS=TILE // columns, COLUMNS=columns, enable_fp_fusion=True,
    )  # fmt: skip
    return parts
