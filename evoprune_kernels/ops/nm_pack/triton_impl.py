"""``nm_pack`` and ``nm_unpack`` in Triton, for every n:m.

``values[r, g*n + i] = weight[r, g*m + index(r, g, i)]``, index increasing in i

::

    row r    | unit 0: 8 groups | unit 1 | ..       8 groups hold whole bytes of meta: n * BITS
    program    span 0: UNITS units       | span 1 | ..                of every row
    tile     [UNITS * 8, ENTRIES]  one row a group; ENTRIES is m rounded up to a power of two

Pack: running counts along a tile row give each chosen entry its slot; values are stored to their slots, and byte k of
a unit is the sum of what its entries put there. Unpack: slot after slot is compared with the entries of its group.
Where no row needs padding the launcher takes the matrix for one long row. Bound by memory for small n and m.
Exact; -0.0 becomes +0.0, any other bits are kept. A group that keeps more than n is found by an atomic minimum; nm_pack
reads it back, and so waits for the stream.
Layout: ``formats/nm.py``.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from evoprune_kernels.formats.nm import index_bits, packed_sizes
from evoprune_kernels.ops.triton_impl import DTYPES, nm_index

#: entries of a tile, with four warps
TILE = 1024
NO_FAULT = 2**63 - 1
_NO_FAULT = tl.constexpr(NO_FAULT)


@triton.jit
def nm_pack_kernel(
    weight_ptr, mask_ptr, values_ptr, meta_ptr, fault_ptr, columns, groups, spans, meta_bytes,
    n: tl.constexpr, m: tl.constexpr, BITS: tl.constexpr,
    ENTRIES: tl.constexpr, UNITS: tl.constexpr, BYTES: tl.constexpr,
):  # fmt: skip
    row = (tl.program_id(0) // spans).to(tl.int64)
    first_unit = (tl.program_id(0) % spans).to(tl.int64) * UNITS
    local = tl.arange(0, UNITS * 8)
    group = first_unit * 8 + local
    entry = tl.arange(0, ENTRIES)[None, :]
    exists = (group < groups)[:, None] & (entry < m)
    column = group[:, None] * m + entry
    inside = exists & (column < columns)
    at = row * columns + column
    kept = tl.load(mask_ptr + at, mask=inside, other=0).to(tl.int32)
    count = tl.sum(kept, 1)
    code = tl.min(tl.where(count > n, (row * groups + group) * 64 + count, _NO_FAULT), 0)
    if code != _NO_FAULT:
        tl.atomic_min(fault_ptr, code)
    # filled up with the lowest free entries
    free = exists.to(tl.int32) - kept
    filled = (free > 0) & (tl.cumsum(free, 1) <= n - count[:, None])
    chosen = kept + filled.to(tl.int32)
    slot = tl.cumsum(chosen, 1) - chosen
    weight = tl.load(weight_ptr + at, mask=inside, other=0.0)
    value = tl.where((kept > 0) & (weight.to(tl.float32) != 0.0), weight, 0.0)
    place = (row * groups + group[:, None]) * n + slot
    tl.store(values_ptr + place, value, mask=(chosen > 0) & (slot < n))
    # meta: entry i of a unit puts its index at bit `start` of the unit
    start = ((local % 8)[:, None] * n + slot) * BITS
    lane = tl.arange(0, BYTES)[None, :]
    packed = tl.zeros((UNITS, BYTES), tl.int32)
    for k in range(n * BITS):
        shift = start - 8 * k
        left = (entry << tl.minimum(tl.maximum(shift, 0), 8)) & 255
        right = entry >> tl.minimum(tl.maximum(-shift, 0), BITS)
        byte = tl.where(shift >= 0, left, right)
        byte = tl.where((chosen > 0) & (shift < 8), byte, 0)
        of_unit = tl.sum(tl.reshape(tl.sum(byte, 1), (UNITS, 8)), 1)
        packed = tl.where(lane == k, of_unit[:, None], packed)
    place = (first_unit + tl.arange(0, UNITS))[:, None] * (n * BITS) + lane
    inside = (lane < n * BITS) & (place < meta_bytes)
    tl.store(meta_ptr + row * meta_bytes + place, packed.to(tl.uint8), mask=inside)


@triton.jit
def nm_unpack_kernel(
    values_ptr, meta_ptr, dense_ptr, columns, groups, spans, meta_bytes,
    n: tl.constexpr, m: tl.constexpr, BITS: tl.constexpr,
    ENTRIES: tl.constexpr, GROUPS: tl.constexpr,
):  # fmt: skip
    row = (tl.program_id(0) // spans).to(tl.int64)
    group = (tl.program_id(0) % spans).to(tl.int64) * GROUPS + tl.arange(0, GROUPS)
    entry = tl.arange(0, ENTRIES)[None, :]
    exists = group < groups
    dense = tl.zeros((GROUPS, ENTRIES), values_ptr.dtype.element_ty)
    for slot in range(n):
        place = group * n + slot
        index = nm_index(meta_ptr, row * meta_bytes, place, exists, BITS)
        value = tl.load(values_ptr + row * groups * n + place, mask=exists, other=0.0)
        dense = tl.where(entry == index[:, None], value[:, None], dense)
    column = group[:, None] * m + entry
    inside = (entry < m) & (column < columns)
    tl.store(dense_ptr + row * columns + column, dense, mask=inside)


def _rows_of(rows: int, columns: int, n: int, m: int) -> tuple[int, int]:
    """``(rows, columns)``, as one long row where every row ends with a whole group and a whole byte of meta."""
    whole = columns % m == 0 and columns // m * n * index_bits(m) % 8 == 0
    return (1, rows * columns) if whole else (rows, columns)


def nm_pack_unfit(weight: Tensor, mask: Tensor, n: int, m: int) -> str | None:
    """Why the kernel cannot run, or None."""
    if weight.dim() != 2 or mask.shape != weight.shape or mask.dtype != torch.bool:
        return f"takes a weight [N, K] and a bool mask, got {tuple(weight.shape)}, {tuple(mask.shape)}, {mask.dtype}"
    if weight.dtype not in DTYPES:
        return f"takes weights of float32, float16 or bfloat16, got {str(weight.dtype)[6:]}"
    return None if 1 <= n <= m <= 32 else f"takes n:m up to 32:32, got {n}:{m}"


def nm_pack_triton(weight: Tensor, mask: Tensor, n: int, m: int) -> tuple[Tensor, Tensor]:
    """As ``nm_pack_reference``."""
    weight, mask = weight.contiguous(), mask.contiguous()
    rows, columns = weight.shape
    kept, meta_bytes = packed_sizes(n, m, columns)
    values = weight.new_empty(rows, kept)
    meta = weight.new_empty(rows, meta_bytes, dtype=torch.uint8)
    if weight.numel() == 0:
        return values, meta
    long_rows, long_columns = _rows_of(rows, columns, n, m)
    _, row_bytes = packed_sizes(n, m, long_columns)
    groups, bits, entries = -(-long_columns // m), index_bits(m), triton.next_power_of_2(m)
    units = TILE // (8 * entries)
    spans = triton.cdiv(groups, units * 8)
    fault = torch.full((1,), NO_FAULT, dtype=torch.int64, device=weight.device)
    nm_pack_kernel[(long_rows * spans,)](
        weight, mask, values, meta, fault, long_columns, groups, spans, row_bytes,
        n=n, m=m, BITS=bits, ENTRIES=entries, UNITS=units, BYTES=triton.next_power_of_2(n * bits),
        enable_fp_fusion=True,
    )  # fmt: skip
    found = int(fault.item())
    if found != NO_FAULT:
        row, group = divmod(found // 64, -(-columns // m))
        raise ValueError(
            f"weight[{row}, {group * m}:{min(group * m + m, columns)}] keeps {found % 64} values, "
            f"the pattern {n}:{m} allows {n}"
        )
    return values, meta


def nm_unpack_unfit(values: Tensor, meta: Tensor, n: int, m: int, in_features: int) -> str | None:
    """Why the kernel cannot run, or None."""
    if not 1 <= n <= m <= 32 or meta.dtype != torch.uint8:
        return f"takes n:m up to 32:32 and meta of uint8, got {n}:{m} and {meta.dtype}"
    kept, meta_bytes = packed_sizes(n, m, in_features)
    rows = values.shape[0] if values.dim() else 0
    if tuple(values.shape) != (rows, kept) or tuple(meta.shape) != (rows, meta_bytes):
        return f"takes values [N, {kept}] and meta [N, {meta_bytes}], got {tuple(values.shape)}, {tuple(meta.shape)}"
    if values.dtype not in DTYPES:
        return f"takes values of float32, float16 or bfloat16, got {str(values.dtype)[6:]}"
    return None


def nm_unpack_triton(values: Tensor, meta: Tensor, n: int, m: int, in_features: int) -> Tensor:
    """As ``nm_unpack_reference``."""
    values, meta = values.contiguous(), meta.contiguous()
    dense = values.new_empty(values.shape[0], in_features)
    if dense.numel() == 0:
        return dense
    rows, columns = _rows_of(values.shape[0], in_features, n, m)
    groups, entries = -(-columns // m), triton.next_power_of_2(m)
    spans = triton.cdiv(groups, TILE // entries)
    nm_unpack_kernel[(rows * spans,)](
        values, meta, dense, columns, groups, spans, packed_sizes(n, m, columns)[1],
        n=n, m=m, BITS=index_bits(m), ENTRIES=entries, GROUPS=TILE // entries, enable_fp_fusion=True,
    )  # fmt: skip
    return dense
