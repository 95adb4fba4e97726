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
