"""``topk_channels`` in Triton: the indices of the k highest scores of a row, ascending.

``{c : rank of scores[c] among its row < k}``

::

    scores [rows, C]   program = one row, in tiles; read passes + 1 times (the later ones from the cache)
    key                radix select as in ``select_topk``, a digit of 8 bits a pass, all passes in one launch
    index [rows, k]    kept so far + kept before it in the tile: where channel c is written

Bound by latency: one program a row. Exact, no atomics between programs. Ties: the lowest index wins; NaN is last.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from evoprune_kernels.ops.select_topk.triton_impl import (
    BINS,
    DIGIT,
    count_digits,
    find_digit,
    rank_key,
)
from evoprune_kernels.ops.triton_impl import DTYPES

#: most channels of a tile, with four warps
LARGEST_TILE = 2048


@triton.jit(do_not_specialize=["k"])
def topk_channels_kernel(
    scores_ptr, index_ptr, channels, k, PASSES: tl.constexpr, TILE: tl.constexpr
):
    row = tl.program_id(0).to(tl.int64)
    scores_ptr += row * channels
    lane = tl.arange(0, TILE)
    prefix = tl.zeros((), tl.uint32)
    left = k
    for number in tl.static_range(PASSES):
        counts = tl.zeros((BINS,), tl.int32)
        for start in range(0, channels, TILE):
            c = start + lane
            key = rank_key(tl.load(scores_ptr + c, mask=c < channels, other=0.0))
            shift = (PASSES - 1 - number) * DIGIT
            counts += count_digits(key, c < channels, prefix, shift, number == 0)
        digit, left = find_digit(counts, left)
        prefix = (prefix << DIGIT) | digit.to(tl.uint32)
    seen, place = tl.zeros((), tl.int32), row * k
    for start in range(0, channels, TILE):
        c = start + lane
        key = rank_key(tl.load(scores_ptr + c, mask=c < channels, other=0.0))
        tied = ((key == prefix) & (c < channels)).to(tl.int32)
        fits = (tied > 0) & (seen + tl.cumsum(tied, 0) - tied < left)
        kept = (fits | ((key > prefix) & (c < channels))).to(tl.int32)
        at = place + tl.cumsum(kept, 0) - kept
        tl.store(index_ptr + at, c.to(tl.int64), mask=kept > 0)
        seen += tl.sum(tied, 0)
        place += tl.sum(kept, 0)


def topk_channels_unfit(scores: Tensor, k: int) -> str | None:
    """Why the kernel cannot run, or None."""
    if scores.dim() not in (1, 2) or not 0 <= k <= scores.shape[-1]:
        return f"takes scores [C] or [B, C] and k up to C, got {tuple(scores.shape)} and {k}"
    if scores.dtype not in DTYPES:
        return f"takes scores of float32, float16 or bfloat16, got {str(scores.dtype)[6:]}"
    return None


def topk_channels_triton(scores: Tensor, k: int) -> Tensor:
    """As ``topk_channels_reference``."""
    scores = scores.contiguous()
    index = torch.empty(*scores.shape[:-1], k, dtype=torch.int64, device=scores.device)
    if index.numel() == 0:
        return index
    channels = scores.shape[-1]
    tile = min(max(128, triton.next_power_of_2(channels)), LARGEST_TILE)
    topk_channels_kernel[(scores.numel() // channels,)](
        scores, index, channels, k, PASSES=scores.element_size(), TILE=tile, enable_fp_fusion=True
    )
    return index
