"""``bitmask_pack`` and ``bitmask_unpack`` in Triton: dense weight and mask <-> values, bits and row pointers.

::

    row r    | 8 columns | 8 columns | ..         a byte of bits each, low bits first
    program    BYTES bytes of one row: tile [BYTES, 8] = [BLOCK_K] columns

    bits_kernel      mask -> bits and the number of values of every row         one program a row
    (torch)          running sum of the counts -> row_ptr; its last entry is read back: the size of values
    values_kernel    row_ptr[r] + kept before column k in the row -> where weight[r, k] goes
    unpack_kernel    the same places, read

Bound by memory. Exact; -0.0 becomes +0.0, any other bits are kept. Packing waits for the stream: the number of values
depends on the mask. Layout: ``formats/bitmask.py``.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from evoprune_kernels.formats.block import row_pointers
from evoprune_kernels.ops.triton_impl import DTYPES

#: columns of a tile, with four warps
BLOCK_K = 1024


@triton.jit
def bitmask_bits_kernel(
    mask_ptr, bits_ptr, counts_ptr, columns, row_bytes, BLOCK_K: tl.constexpr
):  # fmt: skip
    row = tl.program_id(0).to(tl.int64)
    byte = tl.arange(0, BLOCK_K // 8)
    bit = tl.arange(0, 8)[None, :]
    total = tl.zeros((BLOCK_K // 8,), tl.int32)
    for start in range(0, row_bytes, BLOCK_K // 8):
        column = (start + byte)[:, None] * 8 + bit
        kept = tl.load(mask_ptr + row * columns + column, mask=column < columns, other=0)
        kept = kept.to(tl.int32)
        inside = start + byte < row_bytes
        word = tl.sum(kept << bit, 1).to(tl.uint8)
        tl.store(bits_ptr + row * row_bytes + start + byte, word, mask=inside)
        total += tl.sum(kept, 1)
    tl.store(counts_ptr + row, tl.sum(total, 0))


@triton.jit
def bitmask_values_kernel(
    dense_ptr, values_ptr, bits_ptr, row_ptr_ptr, columns, row_bytes,
    PACK: tl.constexpr, BLOCK_K: tl.constexpr,
):  # fmt: skip
    row = tl.program_id(0).to(tl.int64)
    place = tl.load(row_ptr_ptr + row).to(tl.int64)
    lane = tl.arange(0, BLOCK_K)
    for start in range(0, columns, BLOCK_K):
        column = start + lane
        inside = column < columns
        byte = tl.load(bits_ptr + row * row_bytes + column // 8, mask=inside, other=0)
        kept = (byte.to(tl.int32) >> (column % 8)) & 1
        before = tl.cumsum(kept, 0) - kept
        dense = dense_ptr + row * columns + column
        values = values_ptr + place + before
        if PACK:
            weight = tl.load(dense, mask=inside & (kept > 0), other=0.0)
            weight = tl.where(weight.to(tl.float32) != 0.0, weight, 0.0)  # no -0.0
            tl.store(values, weight, mask=inside & (kept > 0))
        else:
            weight = tl.load(values, mask=inside & (kept > 0), other=0.0)
            tl.store(dense, weight, mask=inside)
        place += tl.sum(kept, 0)


def bitmask_pack_unfit(weight: Tensor, mask: Tensor) -> str | None:
    """Why the kernels cannot run, or None."""
    if weight.dim() != 2 or mask.shape != weight.shape or mask.dtype != torch.bool:
        return f"takes a weight [N, K] and a bool mask, got {tuple(weight.shape)}, {tuple(mask.shape)}, {mask.dtype}"
    if weight.dtype not in DTYPES:
        return f"takes weights of float32, float16 or bfloat16, got {str(weight.dtype)[6:]}"
    return None


def bitmask_pack_triton(weight: Tensor, mask: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """As ``bitmask_pack_reference``."""
    weight, mask = weight.contiguous(), mask.contiguous()
    rows, columns = weight.shape
    row_bytes = -(-columns // 8)
    bits = weight.new_empty(rows, row_bytes, dtype=torch.uint8)
    if weight.numel() == 0:
        return weight.new_empty(0), bits, weight.new_zeros(rows + 1, dtype=torch.int32)
    counts = weight.new_empty(rows, dtype=torch.int32)
    bitmask_bits_kernel[(rows,)](
        mask, bits, counts, columns, row_bytes, BLOCK_K=BLOCK_K, enable_fp_fusion=True
    )
    row_ptr = row_pointers(counts)
    values = weight.new_empty(int(row_ptr[-1]))
    bitmask_values_kernel[(rows,)](
        weight, values, bits, row_ptr, columns, row_bytes,
        PACK=True, BLOCK_K=BLOCK_K, enable_fp_fusion=True,
    )  # fmt: skip
    return values, bits, row_ptr


def bitmask_unpack_unfit(
    values: Tensor, bits: Tensor, row_ptr: Tensor, in_features: int
) -> str | None:
    """Why the kernels cannot run, or None."""
    expected = (row_ptr.numel() - 1, -(-in_features // 8))
    if tuple(bits.shape) != expected or bits.dtype != torch.uint8:
        return f"takes bits of shape {expected} and uint8, got {tuple(bits.shape)} and {bits.dtype}"
    if values.dtype not in DTYPES:
        return f"takes values of float32, float16 or bfloat16, got {str(values.dtype)[6:]}"
    return None


def bitmask_unpack_triton(
    values: Tensor, bits: Tensor, row_ptr: Tensor, in_features: int
) -> Tensor:
    """As ``bitmask_unpack_reference``."""
    values, bits, row_ptr = values.contiguous(), bits.contiguous(), row_ptr.contiguous()
    rows, row_bytes = bits.shape
    dense = values.new_empty(rows, in_features)
    if dense.numel():
        bitmask_values_kernel[(rows,)](
            dense, values, bits, row_ptr, in_features, row_bytes,
            PACK=False, BLOCK_K=BLOCK_K, enable_fp_fusion=True,
        )  # fmt: skip
    return dense
