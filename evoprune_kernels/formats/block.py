"""The format of ``block:RxC`` patterns: the kept blocks, row of blocks by row of blocks.

N = 4, K = 5, blocks 2x2 (the literal test of tests/formats/test_block.py)::

              c0    c1    c2
    dense   a  b |  .  . | c         block row 0 keeps c0 and c2; c2 is cut off by the edge
            d  e |  .  . | f
            -----+-------+---
            .  . |  g  . | .         block row 1 keeps c1, whole, with its zeros
            .  . |  .  h | .

    values  [nnz, bn, bk]     [[a b] [d e]]   [[c 0] [f 0]]   [[g 0] [0 h]]     padded with 0 inside the block
    col_idx int32 [nnz]            0               2               1            block columns, increasing in a row
    row_ptr int32 [B + 1]     0 2 3                                             B = ceil(N/bn) rows of blocks

Block row r holds the blocks row_ptr[r] to row_ptr[r + 1]. A block is kept when its mask keeps any entry; entries that
the mask removes inside a kept block are stored as 0.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor
from torch.nn.functional import pad

from evoprune_kernels._check import check, check_dim, check_dtype, check_shape
from evoprune_kernels.formats.base import (
    Block,
    PackedWeight,
    Pattern,
    check_values,
    kept_mask,
    parse_attributes,
    require_tensors,
)

#: the largest int32: what row_ptr and col_idx can count
MAX_COUNT = 2**31 - 1


def block_grid(rows: int, columns: int, bn: int, bk: int) -> tuple[int, int]:
    """How many blocks a weight has: ``(ceil(rows / bn), ceil(columns / bk))``."""
    return -(-rows // bn), -(-columns // bk)


def blocks_of(matrix: Tensor, bn: int, bk: int) -> Tensor:
    """[N, K] -> [B, C, bn, bk], padded with 0."""
    rows, columns = matrix.shape
    padded = pad(matrix, (0, -columns % bk, 0, -rows % bn))
    grid = block_grid(rows, columns, bn, bk)
    return padded.view(grid[0], bn, grid[1], bk).transpose(1, 2)


def pack_block(weight: Tensor, mask: Tensor, bn: int, bk: int) -> tuple[Tensor, Tensor, Tensor]:
    """``(values, row_ptr, col_idx)`` of a dense weight [N, K]."""
    kept = torch.where(mask, weight, torch.zeros_like(weight)) + 0.0
    present = blocks_of(mask, bn, bk).flatten(2).any(-1)  # [B, C]
    block_row, block_column = present.nonzero(as_tuple=True)
    values = blocks_of(kept, bn, bk)[block_row, block_column]
    return values.contiguous(), row_pointers(present.sum(1)), block_column.to(torch.int32)


def row_pointers(counts: Tensor) -> Tensor:
    """Counts of each row -> int32 [rows + 1], their running sum from 0."""
    return pad(counts.cumsum(0), (1, 0)).to(torch.int32)


def rows_of(row_ptr: Tensor, count: int) -> Tensor:
    """The row of every entry: int64 [count], from row_ptr [rows + 1]."""
    rows = torch.arange(row_ptr.numel() - 1, device=row_ptr.device)
    return rows.repeat_interleave(row_ptr.diff().long(), output_size=count)


def unpack_block(
    values: Tensor, row_ptr: Tensor, col_idx: Tensor, rows: int, columns: int
) -> Tensor:
    """The dense weight [rows, columns] of packed tensors."""
    _, bn, bk = values.shape
    grid = block_grid(rows, columns, bn, bk)
    blocks = values.new_zeros(*grid, bn, bk)
    places = rows_of(row_ptr, col_idx.shape[0]), col_idx.long()
    blocks = blocks.index_put(places, values)
    dense = blocks.transpose(1, 2).reshape(grid[0] * bn, grid[1] * bk)
    return dense[:rows, :columns].contiguous()


def check_row_pointers(row_ptr: Tensor, rows: int, count: int) -> None:
    """Raise ``ValueError`` unless ``row_ptr`` [rows + 1] runs from 0 to ``count`` and never falls."""
    check_dim(row_ptr, 1, "row_ptr")
    check_dtype(row_ptr, (torch.int32,), "row_ptr")
    check_shape(row_ptr, (rows + 1,), "row_ptr")
    first, last = int(row_ptr[0]), int(row_ptr[-1])
    check(first == 0, f"row_ptr[0]: expected 0, got {first}")
    check(last == count, f"row_ptr[{rows}]: expected {count}, the length of values, got {last}")
    falls = (row_ptr[1:] < row_ptr[:-1]).nonzero()
    if falls.numel():
        row = int(falls[0])
        pair = row_ptr[row : row + 2].tolist()
        raise ValueError(f"row_ptr falls from {pair[0]} to {pair[1]} at row {row}")


@dataclass(frozen=True, eq=False)
class BlockWeight(PackedWeight):
    """A weight [N, K] of which some ``bn`` x ``bk`` blocks are kept; see the module's drawing.

    Args:
        values: [nnz, bn, bk], the kept blocks.
        row_ptr: int32 [ceil(N/bn) + 1], where each row of blocks starts.
        col_idx: int32 [nnz], the block column of every block.
        shape: (N, K).
        scale: float32 [N] where values are int8, see ``quantize``.

    Example:
        >>> import torch
        >>> from evoprune_kernels.formats import BlockWeight
        >>> packed = BlockWeight.pack(torch.tensor([[1.0, 2.0, 0.0, 0.0, 5.0, 6.0]]), 1, 2)
        >>> packed.values.tolist(), packed.col_idx.tolist()
        ([[[1.0, 2.0]], [[5.0, 6.0]]], [0, 2])
    """

    FORMAT: ClassVar[str] = "block"
    PATTERN: ClassVar[type[Pattern]] = Block
    TENSORS: ClassVar[tuple[str, ...]] = ("values", "row_ptr", "col_idx")

    values: Tensor
    row_ptr: Tensor
    col_idx: Tensor
    shape: tuple[int, int]
    scale: Tensor | None = None

    @classmethod
    def pack(cls, weight: Tensor, *arguments: Any, mask: Tensor | None = None) -> BlockWeight:
        """Pack a dense weight [N, K] as ``BlockWeight.pack(weight, bn, bk, mask=None)``.

        Raises:
            ValueError: if weight and mask do not fit, or an edge is out of range.
        """
        pattern = Block(*arguments)
        tensors = pack_block(weight, kept_mask(weight, mask), pattern.rows, pattern.columns)
        return cls(*tensors, (weight.shape[0], weight.shape[1]))

    @classmethod
    def from_tensors(
        cls, tensors: Mapping[str, Tensor], attributes: Mapping[str, str]
    ) -> BlockWeight:
        """The inverse of ``tensors()`` and ``attributes()``; validated."""
        values, row_ptr, col_idx = require_tensors(cls, tensors)
        pattern, shape = parse_attributes(cls, attributes)
        edges = tuple(values.shape[1:])
        check(edges == pattern.arguments(), f"pattern {str(pattern)!r}, but blocks of {edges}")
        packed = cls(values, row_ptr, col_idx, shape, tensors.get("scale"))
        packed.validate()
        return packed

    @property
    def pattern(self) -> Block:
        """The pattern."""
        return Block(self.values.shape[1], self.values.shape[2])

    def rows(self) -> Tensor:
        """The row of every stored value."""
        count, bn, _ = self.values.shape
        lanes = torch.arange(bn, device=self.values.device)
        return (rows_of(self.row_ptr, count)[:, None] * bn + lanes)[:, :, None]

    def unpack(self) -> Tensor:
        """The dense weight [N, K]."""
        return unpack_block(self.float_values(), self.row_ptr, self.col_idx, *self.shape)

    def validate(self) -> None:
        """Raise ``ValueError`` or ``TypeError`` unless shapes, dtypes, indices and padding are canonical."""
        check_dim(self.values, 3, "values")
        check_values(self)
        count = self.values.shape[0]
        bn, bk = self.pattern.arguments()
        rows, columns = self.shape
        check(rows >= 0 and columns >= 0, f"expected a shape of two sizes, got {self.shape}")
        check(count <= MAX_COUNT, f"expected at most {MAX_COUNT} blocks, got {count}")
        devices = {str(t.device) for t in self.tensors().values()}
        check(len(devices) == 1, f"tensors on several devices: {sorted(devices)}")
        grid = block_grid(rows, columns, bn, bk)
        check_row_pointers(self.row_ptr, grid[0], count)
        self._validate_columns(grid[1])
        self._validate_padding(grid)

    def _validate_columns(self, block_columns: int) -> None:
        """Block columns are in range and increase within a row of blocks."""
        count = self.values.shape[0]
        check_dim(self.col_idx, 1, "col_idx")
        check_dtype(self.col_idx, (torch.int32,), "col_idx")
        check_shape(self.col_idx, (count,), "col_idx")
        bad = ((self.col_idx < 0) | (self.col_idx >= block_columns)).nonzero()
        if bad.numel():
            at = int(bad[0])
            got = int(self.col_idx[at])
            raise ValueError(f"col_idx[{at}]: expected 0 to {block_columns - 1}, got {got}")
        row = rows_of(self.row_ptr, count)
        bad = ((row.diff() == 0) & (self.col_idx.diff() <= 0)).nonzero()
        if bad.numel():
            at = int(bad[0])
            pair = self.col_idx[at : at + 2].tolist()
            raise ValueError(
                f"col_idx does not increase within block row {int(row[at])}: {pair[0]}, {pair[1]}"
            )

    def _validate_padding(self, grid: tuple[int, int]) -> None:
        """Entries of a block beyond the weight's edge are 0."""
        count, bn, bk = self.values.shape
        rows, columns = self.shape
        last_row = rows_of(self.row_ptr, count) == grid[0] - 1
        below = self.values[last_row, rows - (grid[0] - 1) * bn :]
        right = self.values[self.col_idx == grid[1] - 1, :, columns - (grid[1] - 1) * bk :]
        if bool((below != 0).any()) or bool((right != 0).any()):
            raise ValueError(f"values beyond the edge of the {rows}x{columns} weight are not 0")
