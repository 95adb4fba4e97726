"""``bind_conv``: the convolution op that fits a packed weight."""

from __future__ import annotations

import dataclasses

from evoprune_kernels.formats import NM, PackedWeight, format_of
from evoprune_kernels.formats.base import Pattern
from evoprune_kernels.ops._conv import ConvSizes
from evoprune_kernels.ops._op import OPS, Op
from evoprune_kernels.ops.prepare import Bound, bind


def conv_op_of(pattern: Pattern) -> Op:
    """The convolution op of a pattern.

    Raises:
        ValueError: where there is none, or its kernel does not take the pattern.

    Example:
        >>> from evoprune_kernels.formats import parse_pattern
        >>> from evoprune_kernels.ops.prepare_conv import conv_op_of
        >>> conv_op_of(parse_pattern("block:16x16")).name
        'block_conv2d'
    """
    op = OPS.get(f"{format_of(pattern).FORMAT}_conv2d")
    if op is None:
        raise ValueError(f"there is no convolution op for the pattern {pattern}")
    if isinstance(pattern, NM) and pattern.shared == 1 and (pattern.m != 4 or pattern.n > 2):
        raise ValueError(f"the convolution kernels take 1:4, 2:4 and n:mv16, got {pattern}")
    return op


def bind_conv(packed: PackedWeight, sizes: ConvSizes, activation: str) -> Bound:
    """As ``bind``, for a convolution with the CPU kernels: ``run(x, *tensors, bias, *tail, scale)``."""
    bound = bind(packed, activation, device="cpu")
    tail = (*sizes.arguments, *bound.tail[len(packed.shape) :])
    return dataclasses.replace(bound, op=conv_op_of(packed.pattern), tail=tail)
