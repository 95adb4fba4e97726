"""``block_linear`` in Triton: ``y = act(scale * (x W^T) + bias)`` with a block weight of the layout ``canonical``.

::

    values [nnz, bn, bk]    block row r: blocks row_ptr[r] .. row_ptr[r + 1], block column col_idx of each
    program                 BLOCK_M tokens x BLOCK_N outputs of one block row (a tall block is split)
    w tile [BLOCK_N, BLOCK_K] of a block -> tl.dot with x [BLOCK_M, BLOCK_K] at the block's columns

Any edges; a tile's edges are powers of two of 16 at least (what ``tl.dot`` takes), and what lies beyond a block is 0. A
wide block is walked in steps of BLOCK_K. fp32 sums; fp32 inputs are multiplied as fp32, never as tf32. Deterministic:
one program a sum, blocks in their order. Bound by memory for few tokens (every kept block is read once a token tile),
by arithmetic for many.
Source: the block-sparse products of Gale et al., "MegaBlocks", MLSys 2023, without their sorting of tokens.
"""

from __future__ import annotations

from dataclasses import dataclass

import triton
import triton.language as tl
from torch import Tensor

from evoprune_kernels.ops._linear import linear_unfit
from evoprune_kernels.ops.triton_impl import store_outputs


@dataclass(frozen=True)
class Tile:
    """What one program multiplies at a time."""

    tokens: int
    outputs: int
    depth: int


def choose_tile(tokens: int, bn: int, bk: int) -> Tile:
    """The smallest tile that covers a block, within what stays in registers."""

    def edge(size: int, largest: int) -> int:
        return min(max(16, triton.next_power_of_2(size)), largest)

    return Tile(edge(tokens, 32), edge(bn, 64), edge(bk, 32))


@triton.jit
def block_linear_kernel(
    x_ptr, values_ptr, row_ptr_ptr, col_idx_ptr, bias_ptr, scale_ptr, y_ptr, M, N, K,
    bn: tl.constexpr, bk: tl.constexpr, HAS_BIAS: tl.constexpr, HAS_SCALE: tl.constexpr,
    ACTIVATION: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_K: tl.constexpr,
):  # fmt: skip
    PARTS: tl.constexpr = (bn + BLOCK_N - 1) // BLOCK_N
    token = tl.program_id(0) * BLOCK_M + tl.arange(0, BLOCK_M)
    block_row = tl.program_id(1) // PARTS
    row = tl.program_id(1) % PARTS * BLOCK_N + tl.arange(0, BLOCK_N)  # within the block
    lane = tl.arange(0, BLOCK_K)
    first = tl.load(row_ptr_ptr + block_row)
    last = tl.load(row_ptr_ptr + block_row + 1)
    base = first.to(tl.int64) * (bn * bk)
    acc = tl.zeros((BLOCK_M, BLOCK_N), tl.float32)
    for block in range(first, last):
        start = tl.load(col_idx_ptr + block).to(tl.int64) * bk
        for part in tl.static_range(0, bk, BLOCK_K):
            k = part + lane
            stored = (row < bn)[:, None] & (k < bk)[None, :]
            w = tl.load(values_ptr + base + row[:, None] * bk + k[None, :], mask=stored, other=0.0)
            column = start + k
            inside = (token < M)[:, None] & ((k < bk) & (column < K))[None, :]
            at = token.to(tl.int64)[:, None] * K + column[None, :]
            x = tl.load(x_ptr + at, mask=inside, other=0.0)
            acc = tl.dot(x, tl.trans(w.to(x.dtype)), acc, input_precision="ieee")
        base += bn * bk
    # a lane beyond the block must not store what is the next block row's
    output = tl.where(row < bn, block_row * bn + row, N)
    store_outputs(
        y_ptr, bias_ptr, scale_ptr, acc, token, output, M, N, HAS_BIAS, HAS_SCALE, ACTIVATION
    )


def block_linear_unfit(
    x: Tensor, values: Tensor, row_ptr: Tensor, col_idx: Tensor, bias: Tensor | None,
    out_features: int, in_features: int, bn: int, bk: int, activation: str, layout: str,
    scale: Tensor | None = None,
) -> str | None:  # fmt: skip
    """Why the kernel cannot run, or None."""
    if layout != "canonical":
        return f"takes the layout 'canonical', got {layout!r}"
    if bn < 1 or bk < 1 or bk > 256:
        return f"takes blocks of 256 columns at most, got {bn}x{bk}"
    count = values.shape[0] if values.dim() else 0
    expected = {
        "values": (values, (count, bn, bk)),
        "row_ptr": (row_ptr, (-(-out_features // bn) + 1,)),
        "col_idx": (col_idx, (count,)),
    }
    return linear_unfit(x, values, bias, scale, (out_features, in_features), activation, expected)


def block_linear_triton(
    x: Tensor, values: Tensor, row_ptr: Tensor, col_idx: Tensor, bias: Tensor | None,
    out_features: int, in_features: int, bn: int, bk: int, activation: str, layout: str,
    scale: Tensor | None = None,
) -> Tensor:  # fmt: skip
    """As ``block_linear_reference``."""
    x, values = x.contiguous(), values.contiguous()
    row_ptr, col_idx = row_ptr.contiguous(), col_idx.contiguous()
    y = x.new_empty(*x.shape[:-1], out_features)
    if y.numel() == 0:
        return y
    tokens = y.numel() // out_features
    tile = choose_tile(tokens, bn, bk)
    bias_, scale_ = (y if t is None else t.contiguous() for t in (bias, scale))  # y: not read
    rows_of_programs = -(-out_features // bn) * triton.cdiv(bn, tile.outputs)
    block_linear_kernel[(triton.cdiv(tokens, tile.tokens), rows_of_programs)](
        x, values, row_ptr, col_idx, bias_, scale_, y, tokens, out_features, in_features,
        bn=bn, bk=bk, HAS_BIAS=bias is not None, HAS_SCALE=scale is not None,
        ACTIVATION=activation, BLOCK_M=tile.tokens, BLOCK_N=tile.outputs, BLOCK_K=tile.depth,
        enable_fp_fusion=True,
    )  # fmt: skip
    return y
