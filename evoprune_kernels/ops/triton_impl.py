"""Device functions that the Triton kernels share; the counterparts of csrc/select and csrc/cuda/epilogue.cuh."""

from __future__ import annotations

import triton
import triton.language as tl

LOWEST = tl.constexpr(-(2**31))


@triton.jit
def order_key(x):
    """fp32 -> int32 in the order of the ranks: -0.0 equals +0.0, NaN is below -inf (``_rank.ordered_keys``)."""
    bits = x.to(tl.int32, bitcast=True)
    key = tl.where(bits < 0, LOWEST - bits, bits)
    return tl.where(x != x, LOWEST, key)


@triton.jit
def nm_index(meta_ptr, at, place, inside, BITS: tl.constexpr):
    """The index in its group that meta stores for ``place`` of the row whose meta starts at byte ``at``."""
    bit = place * BITS
    byte = at + (bit >> 3)
    shift = (bit & 7).to(tl.int32)
    word = tl.load(meta_ptr + byte, mask=inside, other=0).to(tl.int32)
    if 8 % BITS != 0:  # an index may run into the next byte
        crosses = inside & (shift + BITS > 8)
        word |= tl.load(meta_ptr + byte + 1, mask=crosses, other=0).to(tl.int32) << 8
    return (word >> shift) & ((1 << BITS) - 1)


@triton.jit
def activate(z, ACTIVATION: tl.constexpr):
    """``act(z)`` in fp32; names as in ``ops/_linear.py``."""
    if ACTIVATION == "relu":
        z = tl.where(z < 0, 0.0, z)  # NaN stays
    elif ACTIVATION == "gelu":
        z = 0.5 * z * (1.0 + tl.erf(z * 0.7071067811865476))
    elif ACTIVATION == "gelu_tanh":
        u = 0.7978845608028654 * (z + 0.044715 * z * z * z)
        z = z - z / (tl.exp(2.0 * u) + 1.0)  # 0.5 z (1 + tanh u)
    elif ACTIVATION == "silu":
        z = z / (1.0 + tl.exp(-z))
    return z


@triton.jit
def store_outputs(
    y_ptr, bias_ptr, scale_ptr, acc, token, output, M, N,
    HAS_BIAS: tl.constexpr, HAS_SCALE: tl.constexpr, ACTIVATION: tl.constexpr,
):  # fmt: skip
    """``y[token, output] = act(scale * acc + bias)``; acc [tokens, outputs] in fp32."""
    exists = output < N
    if HAS_SCALE:
        acc = acc * tl.load(scale_ptr + output, mask=exists, other=0.0)[None, :]
    if HAS_BIAS:
        acc = acc + tl.load(bias_ptr + output, mask=exists, other=0.0).to(tl.float32)[None, :]
    at = token.to(tl.int64)[:, None] * N + output[None, :]
    inside = (token < M)[:, None] & exists[None, :]
    tl.store(y_ptr + at, activate(acc, ACTIVATION).to(y_ptr.dtype.element_ty), mask=inside)
