"""``topk_channels`` and ``topk_abs_channels`` in Triton: the indices of the k highest scores of a row, ascending.

``{c : rank of scores[c] among its row < k}``; of the other ``scores[c] = sum |x[:, c]|``, infinite where there is NaN

::

    scores [rows, C]   program = one row, in tiles; read passes + 1 times (the later ones from the cache)
    key                radix select as in ``select_topk``, a digit of 8 bits a pass, all passes in one launch
    index [rows, k]    kept so far + kept before it in the tile: where channel c is written

    sums of |x|        parts of planes or of rows, then their sum in order: as the gradient of ``channel_gate``
    planes             NCHW [B * C, inner]: program = PLANES planes x a part of inner
    rows               channels_last [B * inner, C]: program = COLUMNS channels x a part of the rows

The choice is bound by latency: one program a row. Exact, no atomics between programs. Ties: the lowest index wins; NaN
is last. The sums are bound by memory: x is read once, in fp32 and in an order that depends on the shape alone.
Source of ``topk_abs_channels``: ssProp, arXiv 2408.12561.
"""

from __future__ import annotations

import math

import torch
import triton
import triton.language as tl
from torch import Tensor

from evoprune_kernels.ops._channels import memory_format
from evoprune_kernels.ops.channel_gate.triton_impl import (
    COLUMNS,
    MAX_INDEX,
    MAX_PLACES,
    PART,
    PART_ROWS,
    PARTS,
    TILE,
    channel_gate_sums_kernel,
    is_in_rows,
)
from evoprune_kernels.ops.select_topk.triton_impl import (
    BINS,
    DIGIT,
    count_digits,
    find_digit,
    rank_key,
)
from evoprune_kernels.ops.triton_impl import DTYPES

#: most channels of a tile, with four warps
LARGEST_TILE = 2048


@triton.jit(do_not_specialize=["k"])
def topk_channels_kernel(
    scores_ptr, index_ptr, channels, k, PASSES: tl.constexpr, TILE: tl.constexpr
):
    row = tl.program_id(0).to(tl.int64)
    scores_ptr += row * channels
    lane = tl.arange(0, TILE)
    prefix = tl.zeros((), tl.uint32)
    left = k
    for number in tl.static_range(PASSES):
        counts = tl.zeros((BINS,), tl.int32)
        for start in range(0, channels, TILE):
            c = start + lane
            key = rank_key(tl.load(scores_ptr + c, mask=c < channels, other=0.0))
            shift = (PASSES - 1 - number) * DIGIT
            counts += count_digits(key, c < channels, prefix, shift, number == 0)
        digit, left = find_digit(counts, left)
        prefix = (prefix << DIGIT) | digit.to(tl.uint32)
    seen, place = tl.zeros((), tl.int32), row * k
    for start in range(0, channels, TILE):
        c = start + lane
        key = rank_key(tl.load(scores_ptr + c, mask=c < channels, other=0.0))
        tied = ((key == prefix) & (c < channels)).to(tl.int32)
        fits = (tied > 0) & (seen + tl.cumsum(tied, 0) - tied < left)
        kept = (fits | ((key > prefix) & (c < channels))).to(tl.int32)
        at = place + tl.cumsum(kept, 0) - kept
        tl.store(index_ptr + at, c.to(tl.int64), mask=kept > 0)
        seen += tl.sum(tied, 0)
        place += tl.sum(kept, 0)


# ---- sums of |x| ----
@triton.jit
def part_of(total, AXIS: tl.constexpr):
    """The sums of a tile of absolute values, infinite where one is NaN."""
    sums = tl.sum(total, AXIS)
    return tl.where(sums != sums, float("inf"), sums)


@triton.jit
def channel_abs_planes_kernel(
    x_ptr, parts_ptr, planes, channels, inner, part, PLANES: tl.constexpr, WIDTH: tl.constexpr
):
    plane = tl.program_id(0) * PLANES + tl.arange(0, PLANES)
    exists = plane < planes
    x_ptr += plane.to(tl.int64)[:, None] * inner
    begin = tl.program_id(1) * part
    total = tl.zeros((PLANES, WIDTH), tl.float32)
    for start in range(begin, tl.minimum(begin + part, inner), WIDTH):
        place = start + tl.arange(0, WIDTH)[None, :]
        inside = exists[:, None] & (place < inner)
        total += tl.abs(tl.load(x_ptr + place, mask=inside, other=0.0).to(tl.float32))
    # parts [samples, parts of a plane, channels]
    row = (plane // channels).to(tl.int64) * tl.num_programs(1) + tl.program_id(1)
    tl.store(parts_ptr + row * channels + plane % channels, part_of(total, 1), mask=exists)


@triton.jit
def channel_abs_rows_kernel(
    x_ptr, parts_ptr, channels, rows, part, ROWS: tl.constexpr, COLUMNS: tl.constexpr
):
    channel = tl.program_id(1) * COLUMNS + tl.arange(0, COLUMNS)
    exists = channel < channels
    begin = tl.program_id(0) * part
    total = tl.zeros((ROWS, COLUMNS), tl.float32)
    for start in range(begin, tl.minimum(begin + part, rows), ROWS):
        row = start + tl.arange(0, ROWS)[:, None]
        at = row.to(tl.int64) * channels + channel[None, :]
        inside = (row < rows) & exists[None, :]
        total += tl.abs(tl.load(x_ptr + at, mask=inside, other=0.0).to(tl.float32))
    at = tl.program_id(0).to(tl.int64) * channels + channel
    tl.store(parts_ptr + at, part_of(total, 0), mask=exists)


# ---- launches ----
def topk_channels_unfit(scores: Tensor, k: int) -> str | None:
    """Why the kernel cannot run, or None."""
    if scores.dim() not in (1, 2) or not 0 <= k <= scores.shape[-1]:
        return f"takes scores [C] or [B, C] and k up to C, got {tuple(scores.shape)} and {k}"
    if scores.dtype not in DTYPES:
        return f"takes scores of float32, float16 or bfloat16, got {str(scores.dtype)[6:]}"
    return None


def topk_channels_triton(scores: Tensor, k: int) -> Tensor:
    """As ``topk_channels_reference``."""
    scores = scores.contiguous()
    index = torch.empty(*scores.shape[:-1], k, dtype=torch.int64, device=scores.device)
    if index.numel() == 0:
        return index
    channels = scores.shape[-1]
    tile = min(max(128, triton.next_power_of_2(channels)), LARGEST_TILE)
    topk_channels_kernel[(scores.numel() // channels,)](
        scores, index, channels, k, PASSES=scores.element_size(), TILE=tile, enable_fp_fusion=True
    )
    return index


def topk_abs_channels_unfit(x: Tensor, k: int) -> str | None:
    """Why the kernels cannot run, or None."""
    if x.dim() < 2 or not 0 <= k <= x.shape[1]:
        return f"takes x [B, C, ...] and k up to C, got {tuple(x.shape)} and {k}"
    if x.dtype not in DTYPES:
        return f"takes x of float32, float16 or bfloat16, got {str(x.dtype)[6:]}"
    places = math.prod(x.shape[2:])
    if max(x.shape[0] * x.shape[1], x.shape[0] * places) >= MAX_INDEX or places > MAX_PLACES:
        return f"takes less than {MAX_INDEX} planes, and {MAX_PLACES} places of a channel, got {tuple(x.shape)}"
    return None


def topk_abs_channels_triton(x: Tensor, k: int) -> Tensor:
    """As ``topk_abs_channels_reference``."""
    if x.numel() == 0:
        return torch.arange(k, device=x.device)  # all are 0: the lowest win
    x = x.contiguous(memory_format=memory_format(x))
    parts = _sum_rows(x) if is_in_rows(x) else _sum_planes(x)
    scores = torch.empty(x.shape[1], dtype=torch.float32, device=x.device)
    columns = min(COLUMNS, triton.next_power_of_2(x.shape[1]))
    channel_gate_sums_kernel[(1, triton.cdiv(x.shape[1], columns))](
        parts, scores, parts.shape[0], x.shape[1], PARTS=PARTS, COLUMNS=columns, enable_fp_fusion=True
    )  # fmt: skip
    return topk_channels_triton(scores, k)


def _sum_planes(x: Tensor) -> Tensor:
    """Parts [parts, C] of the sums."""
    planes, inner = x.shape[0] * x.shape[1], math.prod(x.shape[2:])
    width = min(triton.next_power_of_2(inner), TILE)
    at_once = min(TILE // width, triton.next_power_of_2(planes))
    count = triton.cdiv(inner, PART)
    parts = torch.empty(x.shape[0] * count, x.shape[1], dtype=torch.float32, device=x.device)
    channel_abs_planes_kernel[(triton.cdiv(planes, at_once), count)](
        x, parts, planes, x.shape[1], inner, PART, PLANES=at_once, WIDTH=width, enable_fp_fusion=True
    )  # fmt: skip
    return parts


def _sum_rows(x: Tensor) -> Tensor:
    """Parts [parts, C] of the sums."""
    channels, rows = x.shape[1], x.numel() // x.shape[1]
    columns = min(triton.next_power_of_2(channels), COLUMNS)
    parts = torch.empty(
        triton.cdiv(rows, PART_ROWS), channels, dtype=torch.float32, device=x.device
    )
    channel_abs_rows_kernel[(parts.shape[0], triton.cdiv(channels, columns))](
        x, parts, channels, rows, PART_ROWS,
        ROWS=TILE // columns, COLUMNS=columns, enable_fp_fusion=True,
    )  # fmt: skip
    return parts
