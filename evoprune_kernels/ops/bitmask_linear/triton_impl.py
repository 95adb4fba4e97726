"""``bitmask_linear`` in Triton: ``y = act(scale * (x W^T) + bias)`` with a weight of any mask, layout ``canonical``.

::

    bits   [BLOCK_N rows, BLOCK_K columns]   1 where a value is stored
    place  row_ptr[row] + values so far + running count of the tile row     -> values, one gather
    w tile [BLOCK_N, BLOCK_K]                dense, 0 where nothing is kept

A program owns BLOCK_N outputs and walks K. Up to 8 tokens: every token's x, a span of memory, times the tile, summed
over the columns at the end. More: the tile is an operand of tl.dot with BLOCK_M tokens. fp32 sums; fp32 inputs are
multiplied as fp32, never as tf32. Deterministic: one program a sum. Bound by memory for few tokens, by dense arithmetic
for many. A place that is not kept multiplies x by 0.
"""

from __future__ import annotations

import triton
import triton.language as tl
from torch import Tensor

from evoprune_kernels.ops._linear import linear_unfit
from evoprune_kernels.ops.triton_impl import store_outputs

FEW_TOKENS = 8


@triton.jit
def weight_tile(values_ptr, bits_ptr, base, row, column, N, K, row_bytes):
    """``(the dense tile, how many values each of its rows has)``; ``base``: where the values of this tile start."""
    inside = (row < N)[:, None] & (column < K)[None, :]
    at = row.to(tl.int64)[:, None] * row_bytes + column[None, :] // 8
    byte = tl.load(bits_ptr + at, mask=inside, other=0).to(tl.int32)
    kept = (byte >> (column % 8)[None, :]) & 1
    place = base[:, None] + tl.cumsum(kept, 1) - kept
    tile = tl.load(values_ptr + place, mask=inside & (kept > 0), other=0.0)
    return tile, tl.sum(kept, 1)


@triton.jit
def bitmask_linear_few_kernel(
    x_ptr, values_ptr, bits_ptr, row_ptr_ptr, bias_ptr, scale_ptr, y_ptr, M, N, K, row_bytes,
    HAS_BIAS: tl.constexpr, HAS_SCALE: tl.constexpr, ACTIVATION: tl.constexpr,
    TOKENS: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_K: tl.constexpr,
):  # fmt: skip
    row = tl.program_id(0) * BLOCK_N + tl.arange(0, BLOCK_N)
    token = tl.arange(0, TOKENS)
    base = tl.load(row_ptr_ptr + row, mask=row < N, other=0).to(tl.int64)
    acc = tl.zeros((TOKENS, BLOCK_N, BLOCK_K), tl.float32)
    for start in range(0, K, BLOCK_K):
        column = start + tl.arange(0, BLOCK_K)
        w, count = weight_tile(values_ptr, bits_ptr, base, row, column, N, K, row_bytes)
        at = token.to(tl.int64)[:, None] * K + column[None, :]
        x = tl.load(x_ptr + at, mask=(token < M)[:, None] & (column < K)[None, :], other=0.0)
        acc += w.to(tl.float32)[None, :, :] * x.to(tl.float32)[:, None, :]
        base += count
    store_outputs(
        y_ptr,
        bias_ptr,
        scale_ptr,
        tl.sum(acc, 2),
        token,
        row,
        M,
        N,
        HAS_BIAS,
        HAS_SCALE,
        ACTIVATION,
    )


@triton.jit
def bitmask_linear_kernel(
    x_ptr, values_ptr, bits_ptr, row_ptr_ptr, bias_ptr, scale_ptr, y_ptr, M, N, K, row_bytes,
    HAS_BIAS: tl.constexpr, HAS_SCALE: tl.constexpr, ACTIVATION: tl.constexpr,
    BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_K: tl.constexpr,
):  # fmt: skip
    token = tl.program_id(0) * BLOCK_M + tl.arange(0, BLOCK_M)
    row = tl.program_id(1) * BLOCK_N + tl.arange(0, BLOCK_N)
    base = tl.load(row_ptr_ptr + row, mask=row < N, other=0).to(tl.int64)
    acc = tl.zeros((BLOCK_M, BLOCK_N), tl.float32)
    for start in range(0, K, BLOCK_K):
        column = start + tl.arange(0, BLOCK_K)
        w, count = weight_tile(values_ptr, bits_ptr, base, row, column, N, K, row_bytes)
        at = token.to(tl.int64)[:, None] * K + column[None, :]
        x = tl.load(x_ptr + at, mask=(token < M)[:, None] & (column < K)[None, :], other=0.0)
        acc = tl.dot(x, tl.trans(w.to(x.dtype)), acc, input_precision="ieee")
        base += count
    store_outputs(
        y_ptr, bias_ptr, scale_ptr, acc, token, row, M, N, HAS_BIAS, HAS_SCALE, ACTIVATION
    )


def bitmask_linear_unfit(
    x: Tensor, values: Tensor, bits: Tensor, row_ptr: Tensor, bias: Tensor | None,
    out_features: int, in_features: int, activation: str, layout: str,
    scale: Tensor | None = None,
) -> str | None:  # fmt: skip
    """Why the kernels cannot run, or None."""
    if layout != "canonical":
        return f"takes the layout 'canonical', got {layout!r}"
    expected = {
        "bits": (bits, (out_features, -(-in_features // 8))),
        "row_ptr": (row_ptr, (out_features + 1,)),
    }
    return linear_unfit(x, values, bias, scale, (out_features, in_features), activation, expected)


def bitmask_linear_triton(
    x: Tensor, values: Tensor, bits: Tensor, row_ptr: Tensor, bias: Tensor | None,
    out_features: int, in_features: int, activation: str, layout: str,
    scale: Tensor | None = None,
) -> Tensor:  # fmt: skip
    """As ``bitmask_linear_reference``."""
    x, values, bits, row_ptr = (t.contiguous() for t in (x, values, bits, row_ptr))
    y = x.new_empty(*x.shape[:-1], out_features)
    if y.numel() == 0:
        return y
    tokens = y.numel() // out_features
    bias_, scale_ = (y if t is None else t.contiguous() for t in (bias, scale))  # y: not read
    arguments = (
        x, values, bits, row_ptr, bias_, scale_, y, tokens, out_features, in_features, bits.shape[1],
    )  # fmt: skip
    flags = {
        "HAS_BIAS": bias is not None, "HAS_SCALE": scale is not None, "ACTIVATION": activation,
        "enable_fp_fusion": True,
    }  # fmt: skip
    if tokens <= FEW_TOKENS:
        bitmask_linear_few_kernel[(triton.cdiv(out_features, 4),)](
            *arguments, **flags, TOKENS=triton.next_power_of_2(tokens), BLOCK_N=4,
            BLOCK_K=256 if tokens <= 2 else 128,
        )  # fmt: skip
        return y
    block_m = 16 if tokens <= 16 else 32
    bitmask_linear_kernel[(triton.cdiv(tokens, block_m), triton.cdiv(out_features, 32))](
        *arguments, **flags, BLOCK_M=block_m, BLOCK_N=32, BLOCK_K=32
    )
    return y
