"""``w8a8_prepare``: a quantised packed weight -> the layout that ``w8a8_linear`` reads."""

from __future__ import annotations

import torch
from torch import Tensor

from evoprune_kernels._check import check
from evoprune_kernels.formats import NM, Block, BlockWeight, NMWeight, PackedWeight, Pattern
from evoprune_kernels.ops.block_prepare import block_prepare
from evoprune_kernels.ops.nm_prepare import nm_prepare
from evoprune_kernels.ops.w8a8_prepare.reference import TILE, lines_of_rows, lines_of_strips

#: what the lines of a strip read of x, drawn in csrc/cpu/w8a8_linear.cpp; in the order of csrc/cpu/kernels.h
PICKS = ("run", "strip", "row")
#: the most columns of a weight: so many products of 127 * 127 fit an int32 sum
MAX_COLUMNS = (2**31 - 1) // 127**2


def w8a8_picks(pattern: Pattern) -> str:
    """How ``w8a8_linear`` reads x for a weight of this pattern, one of ``PICKS``.

    Raises:
        ValueError: for a pattern without an integer kernel, with the reason.

    Example:
        >>> from evoprune_kernels import formats, ops
        >>> [ops.w8a8_picks(formats.parse_pattern(p)) for p in ("block:16x16", "2:4v16", "2:4")]
        ['run', 'strip', 'row']
    """
    if isinstance(pattern, Block) and pattern.rows % TILE == 0:
        return "run" if pattern.columns % 4 == 0 else "strip"
    if isinstance(pattern, NM) and pattern.shared == TILE:
        return "strip"
    if pattern == NM(2, 4):
        return "row"
    raise ValueError(
        "w8a8 takes blocks whose rows are a multiple of 16, n:mv16 and 2:4 (16 rows go side by side in a vector), "
        f"got {pattern}"
    )


def w8a8_prepare(
    packed: PackedWeight, *, impl: str | None = None
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """The tensors of a quantised weight in the layout of ``w8a8_linear``: the same for every ISA level.

    Args:
        packed: what ``PackedWeight.quantize`` gives, of a pattern that ``w8a8_picks`` takes.
        impl: insist on an implementation of the op that lays out the float weight.

    Returns:
        ``(values int8 [entries, lines, 16, 4], row_ptr int32 [strips + 1], columns, row_sums int32 [strips * 16])``:
        strips of 16 rows in lines of 16 x 4 values, drawn in csrc/cpu/w8a8_linear.cpp; ``row_sums`` are the sums of
        the rows of the weight, which the kernels need that add 128 to x. A cache: never saved.

    Raises:
        ValueError: if the weight is not quantised or not valid, its pattern has no integer kernel, or it has more
            columns than int32 sums can take (133144).

    Notes:
        Once for a weight, in plain torch after ``block_prepare`` or ``nm_prepare``.

    Example:
        >>> import torch
        >>> from evoprune_kernels import formats, ops
        >>> packed = formats.pack(torch.eye(32), "block:16x16").quantize()
        >>> [tuple(t.shape) for t in ops.w8a8_prepare(packed)]
        [(2, 4, 16, 4), (3,), (2,), (32,)]
    """
    picks = w8a8_picks(packed.pattern)
    check(
        packed.scale is not None,
        "expected an int8 weight with a scale, got one without: quantize() it",
    )
    columns = packed.shape[1]
    check(
        columns <= MAX_COLUMNS, f"expected a weight of up to {MAX_COLUMNS} columns, got {columns}"
    )
    if isinstance(packed, BlockWeight):
        values, row_ptr, first = block_prepare(packed, impl=impl)
        return lines_of_strips(values, row_ptr, first, columns, runs=picks == "run")
    assert isinstance(packed, NMWeight)
    values, meta = nm_prepare(packed, impl=impl)
    if picks == "row":
        return lines_of_rows(values, meta)
    tiles, kept, _ = values.shape
    row_ptr = torch.arange(tiles + 1, dtype=torch.int32, device=meta.device) * kept
    entries = values.view(tiles * kept, 1, TILE)
    return lines_of_strips(entries, row_ptr, unsigned(meta).flatten(), columns, runs=False)


def unsigned(columns: Tensor) -> Tensor:
    """Columns as int64; int16 ones are unsigned."""
    wide = columns.long()
    return wide & 0xFFFF if columns.element_size() == 2 else wide
