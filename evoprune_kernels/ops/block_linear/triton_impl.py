"""``block_linear`` and its backward products in Triton, for a block weight of the layout ``canonical``.

::

    values [nnz, bn, bk]    block row r: blocks ptr[r] .. ptr[r + 1], block column idx of each
    block_product_kernel    program = BLOCK_M tokens x BLOCK_N outputs of one block row (a tall block is split);
                            y  = act(scale * (x W^T) + bias)     steps: blocks of the row, BLOCK_K columns at a time
                            dX = dY W                            the same with rows and columns exchanged: blocks of a
                                                                 column (``transpose_index``), block ``order[i]`` each
    block_linear_dw_kernel  program = BLOCK_M x BLOCK_N of one kept block; steps: BLOCK_K tokens
                            dW[block] = dY[:, its rows]^T x[:, its columns]

Any edges; a tile's edges are powers of two of 16 at least (what ``tl.dot`` takes), and what lies beyond a block is 0.
Tiles: ``tiles.py``. fp32 sums; fp32 inputs are multiplied as fp32, never as tf32. Deterministic: one program a sum, in
a fixed order, no atomics. Bound by memory for few tokens (every kept block is read once a token tile), by arithmetic
for many. dW of small blocks is bound by the loads of dY and x: each is read once a block of its column.
Source: the block-sparse products of Gale et al., "MegaBlocks", MLSys 2023, without their sorting of tokens.
"""

from __future__ import annotations

import math

import torch
import triton
import triton.language as tl
from torch import Tensor

from evoprune_kernels.ops._linear import linear_unfit
from evoprune_kernels.ops.block_linear.tiles import choose_tile
from evoprune_kernels.ops.triton_impl import DTYPES, architecture, store_outputs


@triton.jit
def block_product_kernel(
    x_ptr, values_ptr, ptr_ptr, idx_ptr, order_ptr, bias_ptr, scale_ptr, y_ptr, M, N, K,
    outputs: tl.constexpr, inputs: tl.constexpr, TRANSPOSED: tl.constexpr, HAS_BIAS: tl.constexpr,
    HAS_SCALE: tl.constexpr, ACTIVATION: tl.constexpr,
    BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_K: tl.constexpr,
):  # fmt: skip
    """``outputs`` x ``inputs`` is a block as the product sees it; in memory it is that, or TRANSPOSED."""
    PARTS: tl.constexpr = (outputs + BLOCK_N - 1) // BLOCK_N
    STEPS: tl.constexpr = (inputs + BLOCK_K - 1) // BLOCK_K  # of a block
    token_tiles = (M + BLOCK_M - 1) // BLOCK_M
    token = tl.program_id(0) % token_tiles * BLOCK_M + tl.arange(0, BLOCK_M)
    part = tl.program_id(0) // token_tiles  # of a block row
    block_row = part // PARTS
    row = part % PARTS * BLOCK_N + tl.arange(0, BLOCK_N)  # within the block
    first = tl.load(ptr_ptr + block_row)
    count = tl.load(ptr_ptr + block_row + 1) - first
    acc = tl.zeros((BLOCK_M, BLOCK_N), tl.float32)
    for step in range(count * STEPS):
        entry = first + step // STEPS
        k = step % STEPS * BLOCK_K + tl.arange(0, BLOCK_K)
        column = tl.load(idx_ptr + entry).to(tl.int64) * inputs + k
        block = tl.load(order_ptr + entry) if TRANSPOSED else entry
        block_ptr = values_ptr + block.to(tl.int64) * (outputs * inputs)
        inside = (token < M)[:, None] & ((k < inputs) & (column < K))[None, :]
        at = token.to(tl.int64)[:, None] * K + column[None, :]
        x = tl.load(x_ptr + at, mask=inside, other=0.0)
        if TRANSPOSED:
            stored = (k < inputs)[:, None] & (row < outputs)[None, :]
            w = tl.load(block_ptr + k[:, None] * outputs + row[None, :], mask=stored, other=0.0)
            acc = tl.dot(x, w.to(x.dtype), acc, input_precision="ieee")
        else:
            stored = (row < outputs)[:, None] & (k < inputs)[None, :]
            w = tl.load(block_ptr + row[:, None] * inputs + k[None, :], mask=stored, other=0.0)
            acc = tl.dot(x, tl.trans(w.to(x.dtype)), acc, input_precision="ieee")
    output = block_row * outputs + row
    # A lane beyond the block must not store what is the next block row's. Where there is none, Triton 3.6 stores
    # consecutive outputs together only without the select; fp32 keeps it, for it then takes fewer registers.
    if outputs % BLOCK_N != 0 or x_ptr.dtype.element_ty.is_fp32():
        output = tl.where(row < outputs, output, N)
    store_outputs(
        y_ptr, bias_ptr, scale_ptr, acc, token, output, M, N, HAS_BIAS, HAS_SCALE, ACTIVATION
    )


@triton.jit
def block_linear_dw_kernel(
    grad_ptr, x_ptr, row_idx_ptr, col_idx_ptr, dw_ptr, M, N, K, bn: tl.constexpr, bk: tl.constexpr,
    BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_K: tl.constexpr,
):  # fmt: skip
    PARTS: tl.constexpr = (bk + BLOCK_N - 1) // BLOCK_N
    block = tl.program_id(0).to(tl.int64)
    row = tl.program_id(1) // PARTS * BLOCK_M + tl.arange(0, BLOCK_M)  # within the block
    column = tl.program_id(1) % PARTS * BLOCK_N + tl.arange(0, BLOCK_N)
    output = tl.load(row_idx_ptr + block).to(tl.int64) * bn + row
    input = tl.load(col_idx_ptr + block).to(tl.int64) * bk + column
    has_output, has_input = (row < bn) & (output < N), (column < bk) & (input < K)
    acc = tl.zeros((BLOCK_M, BLOCK_N), tl.float32)
    for start in range(0, M, BLOCK_K):
        token = start + tl.arange(0, BLOCK_K)
        inside, at = (token < M)[:, None], token.to(tl.int64)[:, None]
        grad = tl.load(
            grad_ptr + at * N + output[None, :], mask=inside & has_output[None, :], other=0.0
        )
        x = tl.load(x_ptr + at * K + input[None, :], mask=inside & has_input[None, :], other=0.0)
        acc = tl.dot(tl.trans(grad), x, acc, input_precision="ieee")
    stored = (row < bn)[:, None] & (column < bk)[None, :]
    at = block * (bn * bk) + row[:, None] * bk + column[None, :]
    tl.store(dw_ptr + at, acc.to(dw_ptr.dtype.element_ty), mask=stored)


def block_linear_unfit(
    x: Tensor, values: Tensor, row_ptr: Tensor, col_idx: Tensor, bias: Tensor | None,
    out_features: int, in_features: int, bn: int, bk: int, activation: str, layout: str,
    scale: Tensor | None = None,
) -> str | None:  # fmt: skip
    """Why the kernel cannot run, or None."""
    if layout != "canonical":
        return f"takes the layout 'canonical', got {layout!r}"
    if bn < 1 or bk < 1:
        return f"takes blocks of one row and column at least, got {bn}x{bk}"
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
    index = row_ptr.contiguous(), col_idx.contiguous()
    return _product(
        x, values, (*index, index[1]), (out_features, in_features), (bn, bk),
        bias=bias, scale=scale, activation=activation, transposed=False,
    )  # fmt: skip


def _product(
    x: Tensor, values: Tensor, index: tuple[Tensor, Tensor, Tensor], shape: tuple[int, int],
    block: tuple[int, int], *, bias: Tensor | None = None, scale: Tensor | None = None,
    activation: str = "none", transposed: bool,
) -> Tensor:  # fmt: skip
    """``act(scale * (x W^T) + bias)``; shape and block of W as the product sees it, ``transposed`` in memory."""
    x, values = x.contiguous(), values.contiguous()
    y = x.new_empty(*x.shape[:-1], shape[0])
    if y.numel() == 0:
        return y
    tokens = y.numel() // shape[0]
    tile = choose_tile(architecture(), x.element_size(), tokens, *block)
    bias_, scale_ = (y if t is None else t.contiguous() for t in (bias, scale))  # y: not read
    rows_of_programs = -(-shape[0] // block[0]) * triton.cdiv(block[0], tile.columns)
    block_product_kernel[(triton.cdiv(tokens, tile.rows) * rows_of_programs,)](
        x, values, *index, bias_, scale_, y, tokens, *shape,
        outputs=block[0], inputs=block[1], TRANSPOSED=transposed, HAS_BIAS=bias is not None,
        HAS_SCALE=scale is not None, ACTIVATION=activation,
        BLOCK_M=tile.rows, BLOCK_N=tile.columns, BLOCK_K=tile.depth,
        num_warps=tile.warps, num_stages=tile.stages, enable_fp_fusion=True,
    )  # fmt: skip
    return y


def block_linear_dx_unfit(
    grad: Tensor, values: Tensor, col_ptr: Tensor, row_idx: Tensor, order: Tensor,
    out_features: int, in_features: int, bn: int, bk: int,
) -> str | None:  # fmt: skip
    """Why the kernel cannot run, or None."""
    if bn < 1 or bk < 1:
        return f"takes blocks of one row and column at least, got {bn}x{bk}"
    count = values.shape[0] if values.dim() else 0
    expected = {
        "values": (values, (count, bn, bk)),
        "col_ptr": (col_ptr, (-(-in_features // bk) + 1,)),
        "row_idx": (row_idx, (count,)),
        "order": (order, (count,)),
    }
    return linear_unfit(grad, values, None, None, (in_features, out_features), "none", expected)


def block_linear_dx_triton(
    grad: Tensor, values: Tensor, col_ptr: Tensor, row_idx: Tensor, order: Tensor,
    out_features: int, in_features: int, bn: int, bk: int,
) -> Tensor:  # fmt: skip
    """``dX = dY W``; see ``backward.DX``."""
    index = col_ptr.contiguous(), row_idx.contiguous(), order.contiguous()
    return _product(grad, values, index, (in_features, out_features), (bk, bn), transposed=True)


def block_linear_dw_unfit(
    grad: Tensor, x: Tensor, row_idx: Tensor, col_idx: Tensor, bn: int, bk: int
) -> str | None:
    """Why the kernel cannot run, or None."""
    if grad.dtype not in DTYPES or x.dtype != grad.dtype:
        return f"takes grad and x of float32, float16 or bfloat16, got {grad.dtype} and {x.dtype}"
    if grad.dim() < 1 or grad.shape[:-1] != x.shape[:-1]:
        return f"takes grad and x of the same tokens, got {tuple(grad.shape)} and {tuple(x.shape)}"
    if bn < 1 or bk < 1 or row_idx.dim() != 1 or row_idx.shape != col_idx.shape:
        return (
            f"takes a row and a column of every block of {bn}x{bk}, got {tuple(row_idx.shape)} and "
            f"{tuple(col_idx.shape)}"
        )
    return None


def block_linear_dw_triton(
    grad: Tensor, x: Tensor, row_idx: Tensor, col_idx: Tensor, bn: int, bk: int
) -> Tensor:
    """``dW = dY^T x`` on the kept blocks; see ``backward.DW``."""
    grad, x = grad.contiguous(), x.contiguous()
    row_idx, col_idx = row_idx.contiguous(), col_idx.contiguous()
    dw = torch.empty(row_idx.shape[0], bn, bk, dtype=grad.dtype, device=grad.device)
    if dw.numel() == 0:
        return dw
    tokens = math.prod(grad.shape[:-1])
    tile = choose_tile(architecture(), grad.element_size(), bn, bk, tokens)
    parts = triton.cdiv(bn, tile.rows) * triton.cdiv(bk, tile.columns)
    block_linear_dw_kernel[(dw.shape[0], parts)](
        grad, x, row_idx, col_idx, dw, tokens, grad.shape[-1], x.shape[-1],
        bn=bn, bk=bk, BLOCK_M=tile.rows, BLOCK_N=tile.columns, BLOCK_K=tile.depth,
        num_warps=tile.warps, num_stages=tile.stages, enable_fp_fusion=True,
    )  # fmt: skip
    return dw
