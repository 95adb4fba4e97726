"""``gather_channels`` and ``scatter_channels`` in Triton, NCHW and channels_last.

``y[b, k, ...] = x[b, index[k], ...]``; back: ``y[b, c, ...] = sum over k with index[k] = c of x[b, k, ...]``

::

    planes    NCHW: [B, channels, inner]                program = PLANES planes of y x WIDTH places of a plane
    rows      channels_last: [B * inner, channels]      program = ROWS rows x COLUMNS channels of y
              (also [B, channels] activations)
    links     index [K] -> links [C + K]                program = ENTRIES of them x all of the index
              links[c]      the first k with index[k] = c, or -1
              links[C + k]  the next k with the same index, or -1

Bound by memory: what is chosen is read once, y is written once. A scattered element looks up where it comes from and
adds what its channel is linked to, in the order of k: no zeros before, no atomics, the same bits every time. Values
alone in their channel are moved as they are, -0.0 and NaN included; sums are rounded to the dtype after every addition.
An index outside of its channels (the wrapper refuses it) is neither read nor written: gathered, it is 0.
"""

from __future__ import annotations

import math

import torch
import triton
import triton.language as tl
from torch import Tensor

from evoprune_kernels.ops._channels import empty_channels, memory_format

#: elements of a tile, with four warps: eight a thread
TILE = 1024
#: channels of a tile of rows, most
COLUMNS = 64
#: entries of a program that links, and of the index that it compares them with at a time
ENTRIES, COMPARED = 16, 128
#: planes, and places of a plane, are int32
MAX_INDEX = 2**30
#: bytes of an element -> what it is moved as; 16 bytes are two
MOVED_AS = {1: torch.uint8, 2: torch.int16, 4: torch.int32, 8: torch.int64, 16: torch.int64}
#: what can be added; bool is "or"
ADDED = (
    torch.float16, torch.bfloat16, torch.float32, torch.float64, torch.complex64, torch.complex128,
    torch.uint8, torch.int8, torch.int16, torch.int32, torch.int64, torch.bool,
)  # fmt: skip


# ---- where elements are ----
@triton.jit
def planes_of(channels, inner, outer, PLANES: tl.constexpr, WIDTH: tl.constexpr):
    """Of the program's planes of [outer, channels, inner]: sample and channel [PLANES, 1], place [1, WIDTH], inside."""
    parts = tl.cdiv(inner, WIDTH)
    plane = tl.program_id(0) // parts * PLANES + tl.arange(0, PLANES)
    sample = plane // channels
    channel = plane - sample * channels
    place = tl.program_id(0) % parts * WIDTH + tl.arange(0, WIDTH)[None, :]
    sample, channel = sample.to(tl.int64)[:, None], channel[:, None]
    return sample, channel, place, (sample < outer) & (place < inner)


@triton.jit
def rows_of(channels, outer, ROWS: tl.constexpr, COLUMNS: tl.constexpr):
    """Of the program's part of [outer, channels]: row [ROWS, 1] and channel [1, COLUMNS]."""
    tiles = tl.cdiv(channels, COLUMNS)
    row = (tl.program_id(0) // tiles).to(tl.int64) * ROWS + tl.arange(0, ROWS)[:, None]
    channel = tl.program_id(0) % tiles * COLUMNS + tl.arange(0, COLUMNS)[None, :]
    return row, channel


# ---- gather ----
@triton.jit
def gather_planes_kernel(
    x_ptr, index_ptr, y_ptr, outer, channels, kept, inner, PLANES: tl.constexpr, WIDTH: tl.constexpr
):
    sample, k, place, inside = planes_of(kept, inner, outer, PLANES, WIDTH)
    source = tl.load(index_ptr + k, mask=sample < outer, other=-1)
    known = (source >= 0) & (source < channels)
    value = tl.load(
        x_ptr + (sample * channels + source) * inner + place, mask=inside & known, other=0
    )
    tl.store(y_ptr + (sample * kept + k) * inner + place, value, mask=inside)


@triton.jit(do_not_specialize=["kept"])
def gather_rows_kernel(
    x_ptr, index_ptr, y_ptr, outer, channels, kept, ROWS: tl.constexpr, COLUMNS: tl.constexpr
):
    row, k = rows_of(kept, outer, ROWS, COLUMNS)
    source = tl.load(index_ptr + k, mask=k < kept, other=-1)
    known = (row < outer) & (source >= 0) & (source < channels)
    value = tl.load(x_ptr + row * channels + source, mask=known, other=0)
    tl.store(y_ptr + row * kept + k, value, mask=(row < outer) & (k < kept))


# ---- scatter ----
@triton.jit
def added(a, b, BOOLEAN: tl.constexpr):
    """``a + b``, rounded to their dtype; of bool "or"."""
    if BOOLEAN:
        result = a | b
    elif a.dtype.is_fp16() or a.dtype.is_bf16():
        result = (a.to(tl.float32) + b.to(tl.float32)).to(a.dtype)
    else:
        result = a + b
    return result


@triton.jit
def channel_links_kernel(
    index_ptr, links_ptr, channels, kept, ENTRIES: tl.constexpr, COMPARED: tl.constexpr
):
    entry = tl.program_id(0) * ENTRIES + tl.arange(0, ENTRIES)
    after = entry - channels  # k of the entry, or negative
    key = tl.load(index_ptr + after, mask=(after >= 0) & (after < kept), other=-1)
    key = tl.where(after < 0, entry.to(tl.int64), key)[:, None]
    first = tl.full((ENTRIES,), 2147483647, tl.int32)
    for start in range(0, kept, COMPARED):
        k = start + tl.arange(0, COMPARED)[None, :]
        other = tl.load(index_ptr + k, mask=k < kept, other=-1)
        linked = (other == key) & (k > after[:, None]) & (k < kept)
        first = tl.minimum(first, tl.min(tl.where(linked, k, 2147483647), 1))
    first = tl.where(first == 2147483647, -1, first)
    tl.store(links_ptr + entry, first, mask=entry < channels + kept)


@triton.jit
def scatter_planes_kernel(
    x_ptr, links_ptr, y_ptr, outer, channels, kept, inner,
    BOOLEAN: tl.constexpr, PLANES: tl.constexpr, WIDTH: tl.constexpr,
):  # fmt: skip
    sample, channel, place, inside = planes_of(channels, inner, outer, PLANES, WIDTH)
    k = tl.load(links_ptr + channel, mask=sample < outer, other=-1)
    x_ptr += sample * kept * inner + place
    total = tl.load(x_ptr + k.to(tl.int64) * inner, mask=inside & (k >= 0), other=0)
    k = tl.load(links_ptr + channels + k, mask=k >= 0, other=-1)
    while tl.max(k) >= 0:
        value = tl.load(x_ptr + k.to(tl.int64) * inner, mask=inside & (k >= 0), other=0)
        total = tl.where(k >= 0, added(total, value, BOOLEAN), total)
        k = tl.load(links_ptr + channels + k, mask=k >= 0, other=-1)
    tl.store(y_ptr + (sample * channels + channel) * inner + place, total, mask=inside)


@triton.jit(do_not_specialize=["channels"])
def scatter_rows_kernel(
    x_ptr, links_ptr, y_ptr, outer, channels, kept,
    BOOLEAN: tl.constexpr, ROWS: tl.constexpr, COLUMNS: tl.constexpr,
):  # fmt: skip
    row, channel = rows_of(channels, outer, ROWS, COLUMNS)
    k = tl.load(links_ptr + channel, mask=channel < channels, other=-1)
    x_ptr += row * kept
    total = tl.load(x_ptr + k, mask=(row < outer) & (k >= 0), other=0)
    k = tl.load(links_ptr + channels + k, mask=k >= 0, other=-1)
    while tl.max(k) >= 0:
        value = tl.load(x_ptr + k, mask=(row < outer) & (k >= 0), other=0)
        total = tl.where(k >= 0, added(total, value, BOOLEAN), total)
        k = tl.load(links_ptr + channels + k, mask=k >= 0, other=-1)
    tl.store(y_ptr + row * channels + channel, total, mask=(row < outer) & (channel < channels))


# ---- launches ----
def _sizes(x: Tensor, parts: int) -> tuple[int, int]:
    """``(outer, inner)`` of x as [outer, channels, inner]; an element is ``parts`` of them."""
    inner = math.prod(x.shape[2:])
    if memory_format(x) == torch.channels_last:
        return x.shape[0] * inner, parts
    return x.shape[0], inner * parts


def _tile(channels: int, outer: int, inner: int) -> tuple[bool, dict[str, int], int]:
    """``(whether in rows, the tile, programs)`` for y as [outer, channels, inner]."""
    if inner == 1:
        columns = min(triton.next_power_of_2(channels), COLUMNS)
        rows = min(triton.next_power_of_2(outer), TILE // columns)
        programs = triton.cdiv(outer, rows) * triton.cdiv(channels, columns)
        return True, {"ROWS": rows, "COLUMNS": columns}, programs
    width = min(triton.next_power_of_2(inner), TILE)
    planes = min(triton.next_power_of_2(outer * channels), TILE // width)
    programs = triton.cdiv(outer * channels, planes) * triton.cdiv(inner, width)
    return False, {"PLANES": planes, "WIDTH": width}, programs


def _too_large(x: Tensor, channels: int) -> str | None:
    """A reason where planes of x, with so many channels, are not counted by int32."""
    outer, inner = _sizes(x, 1 + (x.element_size() == 16))
    if max(channels, inner, outer * channels if inner > 1 else 0) < MAX_INDEX:
        return None
    return f"takes less than {MAX_INDEX} planes and places of a plane, got {tuple(x.shape)} and {channels} channels"


def gather_channels_unfit(x: Tensor, index: Tensor) -> str | None:
    """Why the kernels cannot run, or None."""
    if x.dim() < 2 or index.dim() != 1 or index.dtype != torch.int64:
        return f"takes x [B, C, ...] and index int64 [K], got {tuple(x.shape)} and {index.dtype} {tuple(index.shape)}"
    return _too_large(x, max(x.shape[1], index.shape[0]))


def gather_channels_triton(x: Tensor, index: Tensor) -> Tensor:
    """As ``gather_channels_reference``."""
    y, index = empty_channels(x, index.shape[0]), index.contiguous()
    if y.numel() == 0:
        return y
    x = x.contiguous(memory_format=memory_format(x))
    kind, parts = MOVED_AS[x.element_size()], 1 + (x.element_size() == 16)
    outer, inner = _sizes(x, parts)
    in_rows, tile, programs = _tile(y.shape[1], outer, inner)
    source, target = (torch.view_as_real(t) if parts == 2 else t for t in (x, y))
    source, target = source.view(kind), target.view(kind)
    if in_rows:
        gather_rows_kernel[(programs,)](
            source, index, target, outer, x.shape[1], y.shape[1], **tile, enable_fp_fusion=True
        )
    else:
        gather_planes_kernel[(programs,)](
            source, index, target, outer, x.shape[1], y.shape[1], inner, **tile, enable_fp_fusion=True
        )  # fmt: skip
    return y


def scatter_channels_unfit(x: Tensor, index: Tensor, channels: int) -> str | None:
    """Why the kernels cannot run, or None."""
    if x.dtype not in ADDED:
        return f"takes x of a dtype that is added, got {x.dtype}"
    if x.dim() < 2 or index.shape != x.shape[1:2] or index.dtype != torch.int64:
        return f"takes x [B, K, ...] and index int64 [K], got {tuple(x.shape)} and {index.dtype} {tuple(index.shape)}"
    return _too_large(x, max(x.shape[1], channels))


def scatter_channels_triton(x: Tensor, index: Tensor, channels: int) -> Tensor:
    """As ``scatter_channels_reference``."""
    y, index = empty_channels(x, channels), index.contiguous()
    if y.numel() == 0 or index.numel() == 0:
        return y.zero_()
    x = x.contiguous(memory_format=memory_format(x))
    kept, boolean = x.shape[1], x.dtype == torch.bool
    outer, inner = _sizes(x, 1 + x.is_complex())
    in_rows, tile, programs = _tile(channels, outer, inner)
    links = torch.empty(channels + kept, dtype=torch.int32, device=x.device)
    channel_links_kernel[(triton.cdiv(links.numel(), ENTRIES),)](
        index, links, channels, kept, ENTRIES=ENTRIES, COMPARED=COMPARED, enable_fp_fusion=True
    )
    source, target = (torch.view_as_real(t) if t.is_complex() else t for t in (x, y))
    if boolean:
        source, target = source.view(torch.uint8), target.view(torch.uint8)
    if in_rows:
        scatter_rows_kernel[(programs,)](
            source, links, target, outer, channels, kept, BOOLEAN=boolean, **tile, enable_fp_fusion=True
        )  # fmt: skip
    else:
        scatter_planes_kernel[(programs,)](
            source, links, target, outer, channels, kept, inner,
            BOOLEAN=boolean, **tile, enable_fp_fusion=True,
        )  # fmt: skip
    return y
