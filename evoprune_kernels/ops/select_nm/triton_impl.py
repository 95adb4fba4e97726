"""``select_nm`` in Triton: which n of every m consecutive scores of a row are kept.

``mask[r, g*m + i] = rank of scores[r, g*m + i] within its group < n``

::

    scores [rows, columns]  | g0: m entries | g1 | g2 | ..  | last: what is left |   row after row
    program                   span 0          | span 1  | ..     of every row: GROUPS groups
    tile   [GROUPS, ENTRIES]  one row a group; ENTRIES is m rounded up to a power of two

Where m divides the columns, groups follow each other without gaps: the launcher takes the matrix for one long row.
Entry j is compared with the whole tile at a time, so m comparisons an entry. Bound by memory for small m: each score is
read once, each mask byte written once. Exact; ties: the lowest index wins; NaN ranks below every number.
Source: Zhou et al., "Learning N:M Fine-grained Structured Sparse Neural Networks From Scratch", ICLR 2021.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from evoprune_kernels.ops.triton_impl import DTYPES, LOWEST, order_key

#: entries of a tile, with four warps: eight or four a thread, so that the unrolled comparisons stay in registers
TILE, TILE_OF_LARGE_GROUPS = 1024, 512


@triton.jit(do_not_specialize=["n"])
def select_nm_kernel(
    scores_ptr, mask_ptr, columns, spans, n,
    m: tl.constexpr, ENTRIES: tl.constexpr, GROUPS: tl.constexpr,
):  # fmt: skip
    row = tl.program_id(0) // spans
    span = tl.program_id(0) % spans
    group = span.to(tl.int64) * GROUPS + tl.arange(0, GROUPS)
    entry = tl.arange(0, ENTRIES)[None, :]
    column = group[:, None] * m + entry
    inside = (entry < m) & (column < columns)
    at = row.to(tl.int64) * columns + column
    scores = tl.load(scores_ptr + at, mask=inside, other=0.0).to(tl.float32)
    # absent entries are last of their group, so at the lowest key they rank above nothing
    keys = tl.where(inside, order_key(scores), LOWEST)
    above = tl.zeros_like(keys)
    for j in tl.static_range(m):
        other = tl.sum(tl.where(entry == j, keys, 0), 1)[:, None]
        above += ((other > keys) | ((other == keys) & (j < entry))).to(tl.int32)
    tl.store(mask_ptr + at, above < n, mask=inside)


def select_nm_unfit(scores: Tensor, n: int, m: int) -> str | None:
    """Why the kernel cannot run, or None."""
    if scores.dim() != 2 or not 1 <= n <= m <= 32:
        return f"takes scores of 2 dimensions and n:m up to 32:32, got {scores.dim()} and {n}:{m}"
    if scores.dtype not in DTYPES:
        return f"takes scores of float32, float16 or bfloat16, got {str(scores.dtype)[6:]}"
    return None


def select_nm_triton(scores: Tensor, n: int, m: int) -> Tensor:
    """As ``select_nm_reference``."""
    scores = scores.contiguous()
    mask = torch.empty(scores.shape, dtype=torch.bool, device=scores.device)
    if mask.numel() == 0:
        return mask
    rows, columns = scores.shape
    if columns % m == 0:
        rows, columns = 1, rows * columns
    entries = triton.next_power_of_2(m)
    groups = (TILE if m <= 8 else TILE_OF_LARGE_GROUPS) // entries
    spans = triton.cdiv(columns, groups * m)
    select_nm_kernel[(rows * spans,)](
        scores, mask, columns, spans, n,
        m=m, ENTRIES=entries, GROUPS=groups, enable_fp_fusion=True,
    )  # fmt: skip
    return mask
