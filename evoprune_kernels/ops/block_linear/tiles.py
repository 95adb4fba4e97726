"""Which tile the Triton kernels of ``block_linear`` multiply at a time: a frozen table, and a pure choice from it.

Not measured on hardware. What the rows are held to, for a program of ``rows`` x ``columns`` sums and ``depth``::

    registers   sums are fp32 in registers (in tensor memory on sm_100): rows * columns / threads <= 64 a thread
    shared      stages * (rows + columns) * depth * bytes: 48 KiB on sm_80, two programs and more a multiprocessor;
                96 KiB on sm_90 and sm_100, two programs; sm_120 has 99 KiB and takes the row of sm_80
    fp32        no tensor cores (never tf32): sums and operands share the registers, so the tile is small

``python -m pytest tests/triton -k budget`` compiles them and holds them to ``bench/budgets.toml``.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Tile:
    """What one program multiplies at a time: ``rows`` x ``columns`` sums, ``depth`` products each; and how."""

    rows: int
    columns: int
    depth: int
    warps: int = 4
    stages: int = 2


#: compute capability times ten -> the largest tile of 16-bit operands
LARGEST = {
    80: Tile(128, 128, depth=32, warps=8, stages=3),
    90: Tile(128, 128, depth=64, warps=8, stages=3),
    100: Tile(128, 128, depth=64, warps=8, stages=3),
    120: Tile(128, 128, depth=32, warps=8, stages=3),
}
#: of 32-bit operands, everywhere
LARGEST_FP32 = Tile(32, 64, depth=32, warps=4, stages=2)
#: sums of a tile from which on it takes all warps of its row of the table
SUMS_OF_FOUR_WARPS = 64 * 128
#: edges of ``tl.dot``
SMALLEST_EDGE = 16


def largest_tile(arch: int, operand_bytes: int) -> Tile:
    """The row of the table for an architecture: the last that is not newer, the first for older ones."""
    if operand_bytes == 4:
        return LARGEST_FP32
    return LARGEST[max((known for known in LARGEST if known <= arch), default=min(LARGEST))]


def choose_tile(arch: int, operand_bytes: int, rows: int, columns: int, depth: int) -> Tile:
    """The smallest tile that covers ``rows`` x ``columns`` x ``depth``, or the largest of the architecture.

    Args:
        arch: compute capability times ten, such as 80.
        operand_bytes: 2, or 4 for fp32.
        rows, columns: sums; the tokens and the outputs of a block, or both edges of a block.
        depth: products of a sum in one block, or tokens.

    Example:
        >>> from evoprune_kernels.ops.block_linear.tiles import choose_tile
        >>> choose_tile(80, 2, rows=5, columns=64, depth=48)
        Tile(rows=16, columns=64, depth=32, warps=4, stages=3)
    """
    largest = largest_tile(arch, operand_bytes)

    def edge(size: int, limit: int) -> int:
        return min(max(SMALLEST_EDGE, 1 << max(0, size - 1).bit_length()), limit)

    rows, columns = edge(rows, largest.rows), edge(columns, largest.columns)
    warps = largest.warps if rows * columns > SUMS_OF_FOUR_WARPS else min(4, largest.warps)
    return Tile(rows, columns, edge(depth, largest.depth), warps, largest.stages)
