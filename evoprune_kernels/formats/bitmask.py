"""The format of any mask: one bit a weight and the kept values, row by row.

N = 2, K = 10 (the literal test of tests/formats/test_bitmask.py)::

    dense   row 0   .  a  .  b  .  .  .  . |  c  .
            row 1   .  .  .  .  .  .  .  . |  .  d

    bits    row 0   0b00001010 = 0x0A        0b00000001 = 0x01      uint8 [N, ceil(K/8)], low bits first, spare bits 0
            row 1   0b00000000 = 0x00        0b00000010 = 0x02
    values  a b c d                                                 [nnz], in the order of the bits
    row_ptr 0 3 4                                                   int32 [N + 1]: where each row's values start
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
    PackedWeight,
    Pattern,
    Unstructured,
    check_values,
    kept_mask,
    parse_attributes,
    require_tensors,
)
from evoprune_kernels.formats.block import MAX_COUNT, check_row_pointers, row_pointers, rows_of


def pack_bits(mask: Tensor) -> Tensor:
    """bool [N, K] -> uint8 [N, ceil(K/8)], low bits first."""
    columns = mask.shape[1]
    grouped = pad(mask, (0, -columns % 8)).unflatten(1, (-(-columns // 8), 8)).to(torch.uint8)
    weights = torch.tensor([1, 2, 4, 8, 16, 32, 64, 128], dtype=torch.uint8, device=mask.device)
    return (grouped * weights).sum(-1, dtype=torch.uint8)


def unpack_bits(bits: Tensor, columns: int) -> Tensor:
    """The inverse of ``pack_bits``: bool [N, columns]."""
    weights = torch.tensor([1, 2, 4, 8, 16, 32, 64, 128], dtype=torch.uint8, device=bits.device)
    return (bits.unsqueeze(-1) & weights).flatten(1)[:, :columns] != 0


def pack_bitmask(weight: Tensor, mask: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """``(values, bits, row_ptr)`` of a dense weight [N, K]."""
    return weight[mask] + 0.0, pack_bits(mask), row_pointers(mask.sum(1))


def unpack_bitmask(values: Tensor, bits: Tensor, columns: int) -> Tensor:
    """The dense weight [N, columns] of packed tensors."""
    dense = values.new_zeros(bits.shape[0], columns)
    return dense.masked_scatter(unpack_bits(bits, columns), values)


@dataclass(frozen=True, eq=False)
class BitmaskWeight(PackedWeight):
    """A weight [N, K] with any mask; see the module's drawing.

    Args:
        values: [nnz], the kept weights, row by row.
        bits: uint8 [N, ceil(K/8)], bit k of a row says whether weight k is kept, low bits first.
        row_ptr: int32 [N + 1], where each row's values start.
        shape: (N, K).
        scale: float32 [N] where values are int8, see ``quantize``.

    Example:
        >>> import torch
        >>> from evoprune_kernels.formats import BitmaskWeight
        >>> packed = BitmaskWeight.pack(torch.tensor([[0.0, 5.0, 0.0, 6.0]]))
        >>> packed.values, packed.bits.tolist(), packed.row_ptr.tolist()
        (tensor([5., 6.]), [[10]], [0, 2])
    """

    FORMAT: ClassVar[str] = "bitmask"
    PATTERN: ClassVar[type[Pattern]] = Unstructured
    TENSORS: ClassVar[tuple[str, ...]] = ("values", "bits", "row_ptr")

    values: Tensor
    bits: Tensor
    row_ptr: Tensor
    shape: tuple[int, int]
    scale: Tensor | None = None

    @classmethod
    def pack(cls, weight: Tensor, *arguments: Any, mask: Tensor | None = None) -> BitmaskWeight:
        """Pack a dense weight [N, K] as ``BitmaskWeight.pack(weight, mask=None)``.

        Raises:
            ValueError: if weight and mask do not fit.
        """
        check(not arguments, f"the pattern 'unstructured' takes no numbers, got {arguments}")
        tensors = pack_bitmask(weight, kept_mask(weight, mask))
        return cls(*tensors, (weight.shape[0], weight.shape[1]))

    @classmethod
    def from_tensors(
        cls, tensors: Mapping[str, Tensor], attributes: Mapping[str, str]
    ) -> BitmaskWeight:
        """The inverse of ``tensors()`` and ``attributes()``; validated."""
        values, bits, row_ptr = require_tensors(cls, tensors)
        _, shape = parse_attributes(cls, attributes)
        packed = cls(values, bits, row_ptr, shape, tensors.get("scale"))
        packed.validate()
        return packed

    @property
    def pattern(self) -> Unstructured:
        """The pattern."""
        return Unstructured()

    def rows(self) -> Tensor:
        """The row of every stored value."""
        return rows_of(self.row_ptr, self.values.numel())

    def unpack(self) -> Tensor:
        """The dense weight [N, K]."""
        return unpack_bitmask(self.float_values(), self.bits, self.shape[1])

    def validate(self) -> None:
        """Raise ``ValueError`` or ``TypeError`` unless shapes, dtypes, bits and counts are canonical."""
        rows, columns = self.shape
        check(rows >= 0 and columns >= 0, f"expected a shape of two sizes, got {self.shape}")
        check_dim(self.values, 1, "values")
        check_values(self)
        count = self.values.numel()
        check(count <= MAX_COUNT, f"expected at most {MAX_COUNT} values, got {count}")
        devices = {str(t.device) for t in self.tensors().values()}
        check(len(devices) == 1, f"tensors on several devices: {sorted(devices)}")
        check_dtype(self.bits, (torch.uint8,), "bits")
        check_shape(self.bits, (rows, -(-columns // 8)), "bits")
        check_row_pointers(self.row_ptr, rows, count)
        spare = columns % 8
        if spare and bool((self.bits[:, -1] >> spare).any()):
            row = int((self.bits[:, -1] >> spare).nonzero()[0])
            raise ValueError(f"bits of row {row}: spare bits beyond column K = {columns} are set")
        kept = unpack_bits(self.bits, columns).sum(1)
        wrong = (kept != self.row_ptr.diff()).nonzero()
        if wrong.numel():
            row = int(wrong[0])
            expected = int(self.row_ptr[row + 1] - self.row_ptr[row])
            raise ValueError(
                f"bits of row {row}: expected {expected} set, as row_ptr says, got {int(kept[row])}"
            )
