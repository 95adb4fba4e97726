"""Packed forms of a pruned weight, in plain torch: one file a format, each with its drawing and worked example."""

from __future__ import annotations

from torch import Tensor

from evoprune_kernels.formats.base import (
    NM,
    Block,
    Channel,
    PackedWeight,
    Pattern,
    Unstructured,
    parse_pattern,
)
from evoprune_kernels.formats.bitmask import BitmaskWeight
from evoprune_kernels.formats.block import BlockWeight
from evoprune_kernels.formats.checkpoint import load, read_metadata, save
from evoprune_kernels.formats.nm import NMWeight

#: every format; the first whose PATTERN fits is used
FORMATS: tuple[type[PackedWeight], ...] = (NMWeight, BlockWeight, BitmaskWeight)


def format_of(pattern: str | Pattern) -> type[PackedWeight]:
    """The format that stores ``pattern``; ``ValueError`` if none does."""
    parsed = parse_pattern(pattern)
    for format_ in FORMATS:
        if isinstance(parsed, format_.PATTERN):
            return format_
    raise ValueError(f"no packed format for the pattern {str(parsed)!r}")


def pack(weight: Tensor, pattern: str | Pattern, mask: Tensor | None = None) -> PackedWeight:
    """Pack a dense weight in the format of its pattern.

    Args:
        weight: [N, K], floating point.
        pattern: such as ``"2:4"``.
        mask: bool [N, K], True = keep; None keeps ``weight != 0``.

    Raises:
        ValueError: if the pattern is unknown or has no format, or the mask does not obey it (with coordinates).

    Example:
        >>> import torch
        >>> from evoprune_kernels import formats
        >>> weight = torch.tensor([[0.0, 5.0, 0.0, 6.0]])
        >>> formats.pack(weight, "2:4").unpack()
        tensor([[0., 5., 0., 6.]])
    """
    parsed = parse_pattern(pattern)
    return format_of(parsed).pack(weight, *parsed.arguments(), mask=mask)


__all__ = [
    "FORMATS",
    "NM",
    "BitmaskWeight",
    "Block",
    "BlockWeight",
    "Channel",
    "NMWeight",
    "PackedWeight",
    "Pattern",
    "Unstructured",
    "format_of",
    "load",
    "pack",
    "parse_pattern",
    "read_metadata",
    "save",
]
