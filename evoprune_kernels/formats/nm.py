"""The format of n:m patterns: the n kept values of every m consecutive weights, and their places.

One row of 2:4, K = 8 (the literal test of tests/formats/test_nm.py)::

                          group 0    |   group 1
    dense   weight[n, 0:8]  .  a  .  b  |  c  d  .  .
    index in group             1     3  |  0  1           increasing
    values  [n, 0:4]        a  b        |  c  d
    meta    [n, 0]          0b01'00'11'01 = 0x4D          2 bits a value, low bits first: 1, 3, 0, 1

    values  [N, G*n]                    G = ceil(K/m): the last group is padded to m columns
    meta    uint8 [N, ceil(G*n*b/8)]    b = max(1, ceil(log2 m)) bits an index, one bit stream a row; spare bits are 0

A group that keeps fewer than n is filled up: its lowest free indices, with value 0. With 2:4::

    dense  .  .  .  a   ->  values 0 a, indices 0 3          dense  .  .  .  .   ->  values 0 0, indices 0 1

An index may then lie beyond column K; its value is 0.

A pattern ``n:mv16`` has one row of meta for 16 rows of values, which keep the same columns::

    values  [N, G*n]                    meta    uint8 [ceil(N/16), ceil(G*n*b/8)]
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
    NM,
    PackedWeight,
    Pattern,
    check_values,
    kept_mask,
    parse_attributes,
    require_tensors,
)


def index_bits(m: int) -> int:
    """Bits of one index: ``max(1, ceil(log2 m))``."""
    return max(1, (m - 1).bit_length())


def packed_sizes(n: int, m: int, in_features: int) -> tuple[int, int]:
    """Columns of ``values`` and of ``meta``: ``(G*n, ceil(G*n*b/8))``."""
    kept = -(-in_features // m) * n
    return kept, -(-kept * index_bits(m) // 8)


def pack_indices(indices: Tensor, m: int) -> Tensor:
    """Indices [N, G*n] below m -> meta uint8 [N, ceil(G*n*b/8)], low bits first."""
    bits = torch.arange(index_bits(m), device=indices.device)
    stream = (indices.unsqueeze(-1) >> bits & 1).flatten(1)
    stream = pad(stream, (0, -stream.shape[1] % 8)).unflatten(1, (-1, 8))
    return (stream << torch.arange(8, device=indices.device)).sum(-1).to(torch.uint8)


def unpack_indices(meta: Tensor, count: int, m: int) -> Tensor:
    """The inverse of ``pack_indices``: int64 [N, count]."""
    bits = index_bits(m)
    stream = (meta.long().unsqueeze(-1) >> torch.arange(8, device=meta.device) & 1).flatten(1)
    stream = stream[:, : count * bits].unflatten(1, (count, bits))
    return (stream << torch.arange(bits, device=meta.device)).sum(-1)


def pack_nm(weight: Tensor, mask: Tensor, n: int, m: int) -> tuple[Tensor, Tensor]:
    """``(values, meta)`` of a dense weight [N, K]; ``ValueError`` names the first group that keeps more than n."""
    rows, columns = weight.shape
    kept_count, _ = packed_sizes(n, m, columns)
    padding = (0, -columns % m)
    kept = pad(mask, padding).unflatten(1, (-1, m))  # [N, G, m]
    counts = kept.sum(-1)
    if bool((counts > n).any()):
        row, group = (counts > n).nonzero()[0].tolist()
        raise ValueError(
            f"weight[{row}, {group * m}:{min(group * m + m, columns)}] keeps {int(counts[row, group])} values, "
            f"the pattern {n}:{m} allows {n}"
        )
    # kept entries first, then the lowest free ones; then both in increasing order
    chosen = kept.int().argsort(dim=-1, descending=True, stable=True)[..., :n].sort(dim=-1).values
    dense = pad(weight, padding).unflatten(1, (-1, m))
    values = torch.where(kept, dense, torch.zeros_like(dense)).gather(-1, chosen) + 0.0
    return values.reshape(rows, kept_count), pack_indices(chosen.reshape(rows, kept_count), m)


def pack_shared(weight: Tensor, mask: Tensor, pattern: NM) -> tuple[Tensor, Tensor]:
    """As ``pack_nm`` for a weight whose rows share masks; ``ValueError`` names the first group that keeps too many."""
    n, m, shared = pattern.arguments()
    rows, columns = weight.shape
    union = pad(mask, (0, 0, 0, -rows % shared)).unflatten(0, (-1, shared)).any(1)
    counts = pad(union, (0, -columns % m)).unflatten(1, (-1, m)).sum(-1)
    if bool((counts > n).any()):
        strip, group = (counts > n).nonzero()[0].tolist()
        raise ValueError(
            f"weight[{strip * shared}:{min((strip + 1) * shared, rows)}, {group * m}:{min(group * m + m, columns)}] "
            f"keeps {int(counts[strip, group])} columns, the pattern {pattern} allows {n}"
        )
    _, meta = pack_nm(union.to(weight.dtype), union, n, m)
    kept = torch.where(mask, weight, torch.zeros_like(weight))
    places = repeat_rows(columns_of(meta, n, m, columns), shared, rows)
    return pad(kept, (0, -columns % m)).gather(1, places) + 0.0, meta


def repeat_rows(tensor: Tensor, shared: int, rows: int) -> Tensor:
    """Every row ``shared`` times, [rows, ...] in all: what is stored once for several rows, for each of them."""
    return tensor if shared == 1 else tensor.repeat_interleave(shared, 0)[:rows]


def columns_of(meta: Tensor, n: int, m: int, in_features: int) -> Tensor:
    """The column of every value: int64 [N, G*n]; a filled-up place may lie at or beyond ``in_features``."""
    count, _ = packed_sizes(n, m, in_features)
    groups = torch.arange(count, device=meta.device) // n
    return unpack_indices(meta, count, m) + groups * m


def unpack_nm(values: Tensor, meta: Tensor, n: int, m: int, in_features: int) -> Tensor:
    """The dense weight [N, K] of packed tensors."""
    columns = columns_of(meta, n, m, in_features)
    dense = values.new_zeros(values.shape[0], -(-in_features // m) * m)
    return dense.scatter(1, columns, values)[:, :in_features].contiguous()


@dataclass(frozen=True, eq=False)
class NMWeight(PackedWeight):
    """A weight [N, K] with at most n kept in every m consecutive weights of a row; see the module's drawing.

    Args:
        values: [N, G*n], the kept weights of every group, left to right.
        meta: uint8 [ceil(N/shared), ceil(G*n*b/8)], their indices in the group, b bits each.
        n, m: the pattern.
        shape: (N, K).
        shared: how many rows share their indices, 1 or 16.
        scale: float32 [N] where values are int8, see ``quantize``.

    Example:
        >>> import torch
        >>> from evoprune_kernels.formats import NMWeight
        >>> packed = NMWeight.pack(torch.tensor([[0.0, 5.0, 0.0, 6.0, 7.0, 8.0, 0.0, 0.0]]), 2, 4)
        >>> packed.values, hex(packed.meta.item())
        (tensor([[5., 6., 7., 8.]]), '0x4d')
    """

    FORMAT: ClassVar[str] = "nm"
    PATTERN: ClassVar[type[Pattern]] = NM
    TENSORS: ClassVar[tuple[str, ...]] = ("values", "meta")

    values: Tensor
    meta: Tensor
    n: int
    m: int
    shape: tuple[int, int]
    shared: int = 1
    scale: Tensor | None = None

    @classmethod
    def pack(cls, weight: Tensor, *arguments: Any, mask: Tensor | None = None) -> NMWeight:
        """Pack a dense weight [N, K] as ``NMWeight.pack(weight, n, m, shared=1, mask=None)``.

        Raises:
            ValueError: if a group keeps more than n (with its coordinates), or n, m are out of range.
        """
        pattern = NM(*arguments)
        mask = kept_mask(weight, mask)
        if pattern.shared > 1:
            values, meta = pack_shared(weight, mask, pattern)
        else:
            values, meta = pack_nm(weight, mask, pattern.n, pattern.m)
        n, m, shared = pattern.arguments()
        return cls(values, meta, n, m, (weight.shape[0], weight.shape[1]), shared)

    @classmethod
    def from_tensors(cls, tensors: Mapping[str, Tensor], attributes: Mapping[str, str]) -> NMWeight:
        """The inverse of ``tensors()`` and ``attributes()``; validated."""
        values, meta = require_tensors(cls, tensors)
        pattern, shape = parse_attributes(cls, attributes)
        n, m, shared = pattern.arguments()
        packed = cls(values, meta, n, m, shape, shared, tensors.get("scale"))
        packed.validate()
        return packed

    @property
    def pattern(self) -> NM:
        """The pattern."""
        return NM(self.n, self.m, self.shared)

    def rows(self) -> Tensor:
        """The row of every stored value."""
        return torch.arange(self.values.shape[0], device=self.values.device)[:, None]

    def unpack(self) -> Tensor:
        """The dense weight [N, K]."""
        meta = repeat_rows(self.meta, self.shared, self.shape[0])
        return unpack_nm(self.float_values(), meta, self.n, self.m, self.shape[1])

    def validate(self) -> None:
        """Raise ``ValueError`` or ``TypeError`` unless shapes, dtypes, indices and spare bits are canonical."""
        n, m, shared = self.pattern.arguments()
        rows, columns = self.shape
        check(rows >= 0 and columns >= 0, f"expected a shape of two sizes, got {self.shape}")
        kept, meta_bytes = packed_sizes(n, m, columns)
        for name in self.TENSORS:
            check_dim(getattr(self, name), 2, name)
        check_values(self)
        check_dtype(self.meta, (torch.uint8,), "meta")
        check_shape(self.values, (rows, kept), "values")
        check_shape(self.meta, (-(-rows // shared), meta_bytes), "meta")
        check(
            self.values.device == self.meta.device,
            f"values on {self.values.device}, meta on {self.meta.device}",
        )
        indices = unpack_indices(self.meta, kept, m).unflatten(1, (-1, n))
        _reject(indices >= m, lambda i: f"meta of row {i[0]}, group {i[1]}: index >= m = {m}")
        _reject(
            indices.diff(dim=-1) <= 0,
            lambda i: f"meta of row {i[0]}, group {i[1]}: indices do not increase",
        )
        spare = kept * index_bits(m) % 8
        if spare:
            _reject(self.meta[:, -1] >> spare != 0, lambda i: f"meta of row {i[0]}: spare bits set")
        beyond = repeat_rows(columns_of(self.meta, n, m, columns), shared, rows) >= columns
        _reject(
            beyond & (self.values != 0),
            lambda i: f"values[{i[0]}, {i[1]}] lies beyond column K = {columns} and is not 0",
        )


def _reject(bad: Tensor, message: Any) -> None:
    """Raise ``ValueError(message(coordinates))`` for the first true entry of ``bad``."""
    if bool(bad.any()):
        raise ValueError(message(bad.nonzero()[0].tolist()))
