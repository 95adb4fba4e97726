"""``select_topk`` in Triton: the k highest of the scores of a list of tensors, by radix select; what its kin share.

``mask[i] = rank of scores[i] among the scores of all tensors < keep``

::

    scores     | tensor 0                 | tensor 1     | ..     flat index: through the list
    programs   | 0       | 1       | 2    | 3       | 4  | ..     a chunk of tiles each, in that order
    key        most significant digit first, 8 bits a pass (16-bit scores: 2 passes, 32: 4, 64: 8)

    count      pass p: the digit of pass p - 1 from its totals; then a histogram of this digit over the keys that match
               the digits found so far, added to totals[p]; the last pass keeps every program's own as well
    mask       key > threshold, and ties: those of the programs before are summed, so each knows how many it may keep;
               one program at most must rank its ties

Bound by memory: passes + 1 reads of the scores and one byte written. Nothing is read back by the host. Exact, and the
same every time: what is added atomically are whole numbers. Ties: the lowest flat index wins; NaN ranks below every
number. Source: Alabi et al., "Fast k-Selection Algorithms for Graphics Processing Units", JEA 2012.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from evoprune_kernels.ops.triton_impl import DTYPES, TYPES

#: scores of a tile, with eight warps
TILE = 4096
#: of one tensor
MAX_PROGRAMS = 1024
#: scores of all tensors; flat indices are int32, the end of the last program's chunk too
MAX_SCORES = 2**31 - 2**22
DIGIT, BINS = tl.constexpr(8), tl.constexpr(256)


# ---- device functions ----
@triton.jit
def rank_key(x):
    """Unsigned integers, as wide as x, in the order of the ranks: -0.0 equals +0.0, NaN is 0 (``_rank.ordered_keys``).

    On the bits alone: fp16 and bf16 make keys of 16 bits in a uint32.
    """
    if x.dtype == tl.float64:
        bits = x.to(tl.int64, bitcast=True)
        key = tl.where(bits < 0, -(2**63) - bits, bits)
        key = tl.where((bits & (2**63 - 1)) > 0x7FF0000000000000, -(2**63), key)
        unsigned = key.to(tl.uint64, bitcast=True) ^ (1 << 63)
    elif x.dtype == tl.float32:
        bits = x.to(tl.int32, bitcast=True)
        key = tl.where(bits < 0, -(2**31) - bits, bits)
        key = tl.where((bits & 0x7FFFFFFF) > 0x7F800000, -(2**31), key)
        unsigned = key.to(tl.uint32, bitcast=True) ^ (1 << 31)
    else:
        INFINITY: tl.constexpr = 0x7C00 if x.dtype == tl.float16 else 0x7F80
        bits = x.to(tl.int16, bitcast=True).to(tl.int32)
        key = tl.where(bits < 0, -(2**15) - bits, bits)
        key = tl.where((bits & 0x7FFF) > INFINITY, -(2**15), key)
        unsigned = (key + 2**15).to(tl.uint32, bitcast=True)
    return unsigned


@triton.jit
def find_digit(counts, left):
    """``(digit, what is left to keep of it)``: the digit of the ``left``-th highest key, from how many have each."""
    bin = tl.arange(0, BINS)
    above = tl.sum(counts, 0) - tl.cumsum(counts, 0)
    hit = (above < left) & (left <= above + counts)
    digit = tl.sum(tl.where(hit, bin, 0), 0)
    return digit, left - tl.sum(tl.where(hit, above, 0), 0)


@triton.jit
def count_digits(key, inside, prefix, SHIFT: tl.constexpr, FIRST: tl.constexpr):
    """Histogram [BINS] of the digit at SHIFT, over the keys whose higher digits are ``prefix``."""
    if not FIRST:
        inside = inside & ((key >> (SHIFT + DIGIT)) == prefix)
    digit = ((key >> SHIFT) & (BINS - 1)).to(tl.int32)
    return tl.histogram(digit, BINS, mask=inside)


# ---- kernels ----
@triton.jit(do_not_specialize=["keep", "first_program"])
def topk_count_kernel(
    scores_ptr, totals_ptr, found_ptr, own_ptr, size, chunk, keep, first_program, programs,
    PASS: tl.constexpr, PASSES: tl.constexpr, AS: tl.constexpr, TILE: tl.constexpr,
):  # fmt: skip
    """totals [PASSES, BINS]; found [PASSES + 1, 2]: prefix and what is left to keep; own [BINS, programs]."""
    SHIFT: tl.constexpr = (PASSES - 1 - PASS) * DIGIT
    bin = tl.arange(0, BINS)
    program = first_program + tl.program_id(0)
    prefix = tl.zeros((), tl.int64)
    if PASS > 0:
        left = keep
        if PASS > 1:
            prefix = tl.load(found_ptr + 2 * PASS - 2)
            left = tl.load(found_ptr + 2 * PASS - 1).to(tl.int32)
        digit, left = find_digit(tl.load(totals_ptr + (PASS - 1) * BINS + bin), left)
        prefix = (prefix << DIGIT) | digit
        if program == 0:
            tl.store(found_ptr + 2 * PASS, prefix)
            tl.store(found_ptr + 2 * PASS + 1, left.to(tl.int64))
    counts = tl.zeros((BINS,), tl.int32)
    begin = tl.program_id(0) * chunk
    for start in range(begin, tl.minimum(begin + chunk, size), TILE):
        at = start + tl.arange(0, TILE)
        key = rank_key(tl.load(scores_ptr + at, mask=at < size, other=0.0).to(AS))
        counts += count_digits(key, at < size, prefix.to(key.dtype), SHIFT, PASS == 0)
    tl.atomic_add(totals_ptr + PASS * BINS + bin, counts, mask=counts > 0, sem="relaxed")
    if PASS == PASSES - 1:
        tl.store(own_ptr + bin * programs + program, counts)


@triton.jit(do_not_specialize=["first_program"])
def topk_mask_kernel(
    scores_ptr, mask_ptr, totals_ptr, found_ptr, own_ptr, size, chunk, first_program, programs,
    PASSES: tl.constexpr, AS: tl.constexpr, TILE: tl.constexpr, BEFORE: tl.constexpr,
):  # fmt: skip
    prefix = tl.load(found_ptr + 2 * PASSES - 2)
    left = tl.load(found_ptr + 2 * PASSES - 1).to(tl.int32)
    last = tl.load(totals_ptr + (PASSES - 1) * BINS + tl.arange(0, BINS))
    digit, left = find_digit(last, left)
    threshold = (prefix << DIGIT) | digit
    program = first_program + tl.program_id(0)
    ties_ptr = own_ptr + digit * programs
    for start in range(0, program, BEFORE):
        other = start + tl.arange(0, BEFORE)
        left -= tl.sum(tl.load(ties_ptr + other, mask=other < program, other=0), 0)
    ties = tl.load(ties_ptr + program)
    all_fit = ties <= left
    ranks_ties = (left > 0) & (ties > left)
    seen = tl.zeros((), tl.int32)
    begin = tl.program_id(0) * chunk
    for start in range(begin, tl.minimum(begin + chunk, size), TILE):
        at = start + tl.arange(0, TILE)
        key = rank_key(tl.load(scores_ptr + at, mask=at < size, other=0.0).to(AS))
        tied = (key == threshold.to(key.dtype)) & (at < size)
        kept = tied & all_fit
        if ranks_ties:
            before = tl.cumsum(tied.to(tl.int32), 0) - tied.to(tl.int32)
            kept = tied & (seen + before < left)
            seen += tl.sum(tied.to(tl.int32), 0)
        tl.store(mask_ptr + at, kept | (key > threshold.to(key.dtype)), mask=at < size)


# ---- launches ----
def keep_highest_triton(scores: list[Tensor], keep: int) -> list[Tensor]:
    """bool masks of the ``keep`` highest scores of all tensors (one fp64, or of ``DTYPES``) together."""
    scores = [tensor.contiguous() for tensor in scores]
    masks = [torch.empty(t.shape, dtype=torch.bool, device=t.device) for t in scores]
    size = sum(t.numel() for t in scores)
    if keep <= 0 or keep >= size:
        return [mask.fill_(keep > 0) for mask in masks]
    dtypes = {t.dtype for t in scores if t.numel()}
    dtype = dtypes.pop() if len(dtypes) == 1 else torch.float32
    passes = dtype.itemsize
    pieces, programs = [], 0
    for tensor, mask in zip(scores, masks, strict=True):
        if tiles := triton.cdiv(tensor.numel(), TILE):
            chunk = triton.cdiv(tiles, MAX_PROGRAMS) * TILE
            count = triton.cdiv(tensor.numel(), chunk)
            pieces.append((tensor, mask, chunk, programs, count))
            programs += count
    device = scores[0].device
    totals = torch.zeros(passes, BINS.value, dtype=torch.int32, device=device)
    found = torch.empty(passes + 1, 2, dtype=torch.int64, device=device)
    own = torch.empty(BINS.value, programs, dtype=torch.int32, device=device)
    options = {"AS": TYPES.get(dtype, tl.float64), "TILE": TILE, "num_warps": 8}
    options |= {"PASSES": passes, "enable_fp_fusion": True}
    for number in range(passes):
        for tensor, _, chunk, first, count in pieces:
            topk_count_kernel[(count,)](
                tensor, totals, found, own, tensor.numel(), chunk, keep, first, programs,
                PASS=number, **options,
            )  # fmt: skip
    for tensor, mask, chunk, first, count in pieces:
        topk_mask_kernel[(count,)](
            tensor, mask, totals, found, own, tensor.numel(), chunk, first, programs,
            BEFORE=1024, **options,
        )  # fmt: skip
    return masks


def scores_unfit(scores: list[Tensor], density: float) -> str | None:
    """Why the kernels cannot rank these scores, or None."""
    for tensor in scores:
        if tensor.dtype not in DTYPES:
            return f"takes scores of float32, float16 or bfloat16, got {str(tensor.dtype)[6:]}"
    if (size := sum(t.numel() for t in scores)) > MAX_SCORES:
        return f"takes up to {MAX_SCORES} scores, got {size}"
    return None if 0.0 <= density <= 1.0 else f"takes densities from 0 to 1, got {density}"


def select_topk_unfit(scores: Tensor, density: float) -> str | None:
    """Why the kernels cannot run, or None."""
    return scores_unfit([scores], density)


def select_topk_triton(scores: Tensor, density: float) -> Tensor:
    """As ``select_topk_reference``."""
    return keep_highest_triton([scores], round(density * scores.numel()))[0]
