"""``nm_linear`` in Triton: ``y = act(scale * (x W^T) + bias)`` with an n:m packed weight of the layout ``canonical``.

Few tokens (up to 8), a weight is read once and multiplied where x is gathered::

    values [N, G*n]   row | p0 p1 p2 ..       places in order, 16 bytes a lane
    tile   [BLOCK_N, BLOCK_P]                 column of place p: (p / n) * m + the index that meta stores
    acc    [TOKENS, BLOCK_N, BLOCK_P]  +=  values * x[token, column]       summed over places at the end

More tokens, a tile of the weight is laid out dense in registers and multiplied by tl.dot (tensor cores for 16 bits)::

    w [BLOCK_N, GROUPS, ENTRIES] -> [BLOCK_N, GROUPS * ENTRIES]      ENTRIES is m rounded up to a power of two
    x [BLOCK_M, GROUPS * ENTRIES]                                    loaded at the same columns, 0 beyond a group

A program owns BLOCK_N outputs of every token, or of BLOCK_M of them. Any n:m and dtype of the values (int8 with a
scale); rows that share meta read the row of meta that is theirs. fp32 sums; fp32 inputs are multiplied as fp32, never
as tf32. Deterministic: one program a sum. Bound by memory for few tokens, by arithmetic (dense, the zeros included)
for many.
"""

from __future__ import annotations

from dataclasses import dataclass

import triton
import triton.language as tl
from torch import Tensor

from evoprune_kernels.formats.nm import index_bits, packed_sizes
from evoprune_kernels.ops._linear import linear_unfit
from evoprune_kernels.ops.triton_impl import nm_index, store_outputs

FEW_TOKENS = 8


@dataclass(frozen=True)
class Tile:
    """What one program works on at a time: outputs, and places (few tokens) or columns (many) of the weight."""

    outputs: int
    depth: int
    tokens: int


def few_tile(tokens: int) -> Tile:
    """For up to ``FEW_TOKENS``: the more tokens, the fewer places, so that all sums stay in registers."""
    outputs, depth = (8, 256) if tokens <= 2 else (4, 128)
    return Tile(outputs, depth, tokens=triton.next_power_of_2(tokens))


def many_tile(tokens: int, entries: int) -> Tile:
    """For ``tl.dot``, whose edges are 16 at least."""
    return Tile(outputs=32, depth=max(32, entries), tokens=16 if tokens <= 16 else 32)


@triton.jit
def nm_linear_few_kernel(
    x_ptr, values_ptr, meta_ptr, bias_ptr, scale_ptr, y_ptr, M, N, K, kept, meta_bytes, shared,
    n: tl.constexpr, m: tl.constexpr, BITS: tl.constexpr, HAS_BIAS: tl.constexpr,
    HAS_SCALE: tl.constexpr, ACTIVATION: tl.constexpr,
    TOKENS: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_P: tl.constexpr,
):  # fmt: skip
    output = tl.program_id(0) * BLOCK_N + tl.arange(0, BLOCK_N)
    token = tl.arange(0, TOKENS)
    row = output.to(tl.int64)[:, None]
    acc = tl.zeros((TOKENS, BLOCK_N, BLOCK_P), tl.float32)
    for start in range(0, kept, BLOCK_P):
        place = start + tl.arange(0, BLOCK_P)[None, :]
        stored = (output < N)[:, None] & (place < kept)
        value = tl.load(values_ptr + row * kept + place, mask=stored, other=0.0).to(tl.float32)
        index = nm_index(meta_ptr, row // shared * meta_bytes, place, stored, BITS)
        column = place // n * m + index
        inside = (stored & (column < K))[None, :, :] & (token < M)[:, None, None]
        at = token.to(tl.int64)[:, None, None] * K + column[None, :, :]
        acc += value[None, :, :] * tl.load(x_ptr + at, mask=inside, other=0.0).to(tl.float32)
    store_outputs(
        y_ptr, bias_ptr, scale_ptr, tl.sum(acc, 2), token, output, M, N,
        HAS_BIAS, HAS_SCALE, ACTIVATION,
    )  # fmt: skip


@triton.jit
def nm_linear_kernel(
    x_ptr, values_ptr, meta_ptr, bias_ptr, scale_ptr, y_ptr, M, N, K, kept, meta_bytes, shared,
    n: tl.constexpr, m: tl.constexpr, BITS: tl.constexpr, HAS_BIAS: tl.constexpr,
    HAS_SCALE: tl.constexpr, ACTIVATION: tl.constexpr,
    ENTRIES: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_K: tl.constexpr,
):  # fmt: skip
    GROUPS: tl.constexpr = BLOCK_K // ENTRIES
    token = tl.program_id(0) * BLOCK_M + tl.arange(0, BLOCK_M)
    output = tl.program_id(1) * BLOCK_N + tl.arange(0, BLOCK_N)
    row = output.to(tl.int64)[:, None]
    entry = tl.arange(0, ENTRIES)[None, None, :]
    of_tile = tl.arange(0, BLOCK_K)
    groups = kept // n
    acc = tl.zeros((BLOCK_M, BLOCK_N), tl.float32)
    for start in range(0, groups, GROUPS):
        group = start + tl.arange(0, GROUPS)[None, :]
        stored = (output < N)[:, None] & (group < groups)
        w = tl.zeros((BLOCK_N, GROUPS, ENTRIES), x_ptr.dtype.element_ty)
        for slot in range(n):
            place = group * n + slot
            value = tl.load(values_ptr + row * kept + place, mask=stored, other=0.0).to(w.dtype)
            index = nm_index(meta_ptr, row // shared * meta_bytes, place, stored, BITS)
            w = tl.where(entry == index[:, :, None], value[:, :, None], w)
        column = (start + of_tile // ENTRIES) * m + of_tile % ENTRIES
        inside = (token < M)[:, None] & ((of_tile % ENTRIES < m) & (column < K))[None, :]
        at = token.to(tl.int64)[:, None] * K + column[None, :]
        x = tl.load(x_ptr + at, mask=inside, other=0.0)
        dense = tl.reshape(w, (BLOCK_N, BLOCK_K))
        acc = tl.dot(x, tl.trans(dense), acc, input_precision="ieee")
    store_outputs(
        y_ptr, bias_ptr, scale_ptr, acc, token, output, M, N, HAS_BIAS, HAS_SCALE, ACTIVATION
    )


def nm_linear_unfit(
    x: Tensor, values: Tensor, meta: Tensor, bias: Tensor | None, out_features: int,
    in_features: int, n: int, m: int, shared: int, activation: str, layout: str,
    scale: Tensor | None = None,
) -> str | None:  # fmt: skip
    """Why the kernels cannot run, or None."""
    if layout != "canonical":
        return f"takes the layout 'canonical', got {layout!r}"
    if not 1 <= n <= m <= 32 or shared < 1:
        return f"takes n:m up to 32:32, got {n}:{m} and {shared} rows a mask"
    kept, meta_bytes = packed_sizes(n, m, in_features)
    expected = {
        "values": (values, (out_features, kept)),
        "meta": (meta, (-(-out_features // shared), meta_bytes)),
    }
    return linear_unfit(x, values, bias, scale, (out_features, in_features), activation, expected)


def nm_linear_triton(
    x: Tensor, values: Tensor, meta: Tensor, bias: Tensor | None, out_features: int,
    in_features: int, n: int, m: int, shared: int, activation: str, layout: str,
    scale: Tensor | None = None,
) -> Tensor:  # fmt: skip
    """As ``nm_linear_reference``."""
    x, values, meta = x.contiguous(), values.contiguous(), meta.contiguous()
    y = x.new_empty(*x.shape[:-1], out_features)
    if y.numel() == 0:
        return y
    tokens, entries = y.numel() // out_features, triton.next_power_of_2(m)
    kept, meta_bytes = packed_sizes(n, m, in_features)
    none = y  # any pointer: it is not read
    bias_, scale_ = (none if t is None else t.contiguous() for t in (bias, scale))
    arguments = (
        x, values, meta, bias_, scale_, y, tokens, out_features, in_features, kept, meta_bytes, shared,
    )  # fmt: skip
    flags = {
        "n": n, "m": m, "BITS": index_bits(m), "HAS_BIAS": bias is not None,
        "HAS_SCALE": scale is not None, "ACTIVATION": activation, "enable_fp_fusion": True,
    }  # fmt: skip
    if tokens <= FEW_TOKENS:
        tile = few_tile(tokens)
        nm_linear_few_kernel[(triton.cdiv(out_features, tile.outputs),)](
            *arguments, **flags, TOKENS=tile.tokens, BLOCK_N=tile.outputs, BLOCK_P=tile.depth
        )
        return y
    tile = many_tile(tokens, entries)
    grid = triton.cdiv(tokens, tile.tokens), triton.cdiv(out_features, tile.outputs)
    nm_linear_kernel[grid](
        *arguments, **flags, ENTRIES=entries,
        BLOCK_M=tile.tokens, BLOCK_N=tile.outputs, BLOCK_K=tile.depth,
    )  # fmt: skip
    return y
