"""Inputs of the convolution ops for their tests: sizes, and ``(x, packed, bias, activation)`` for a pattern."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch

from evoprune_kernels import formats
from evoprune_kernels.formats import NM, Pattern, parse_pattern
from evoprune_kernels.ops._conv import ConvSizes, Pair
from evoprune_kernels.ops._op import Case
from evoprune_kernels.ops.select_block import select_block
from evoprune_kernels.ops.select_nm import select_nm


@dataclass(frozen=True)
class ConvCase:
    """A convolution; ``shape`` of the input [B, C, H, W]."""

    shape: tuple[int, int, int, int]
    out_channels: int
    kernel_size: Pair
    stride: Pair = 1
    padding: Pair = 0
    dilation: Pair = 1

    def sizes(self) -> ConvSizes:
        """As the ops take them."""
        return ConvSizes.of(
            self.out_channels,
            self.shape[1],
            self.kernel_size,
            self.stride,
            self.padding,
            self.dilation,
        )


SHAPES = (
    ConvCase((1, 5, 9, 11), 7, 3, padding=1),  # no size is a multiple of anything
    ConvCase((2, 16, 8, 8), 33, 3, stride=2, padding=1),
    ConvCase((3, 6, 7, 7), 20, (3, 2), stride=(2, 3), padding=(1, 0), dilation=(1, 2)),
    ConvCase((2, 64, 5, 6), 32, 1),
    ConvCase((2, 13, 9, 8), 17, 1, stride=2),
    ConvCase((1, 3, 17, 17), 64, 7, stride=2, padding=3),
    ConvCase((2, 8, 6, 6), 16, 1, padding=1),
    ConvCase((1, 4, 1, 1), 16, 1),
    ConvCase((1, 8, 3, 9), 16, 3, padding=1, dilation=2),
    ConvCase((5, 20, 4, 4), 48, 3),
    ConvCase((3, 4, 20, 20), 16, 3, stride=(1, 2), padding=(0, 2)),  # several panels
    ConvCase((0, 8, 6, 6), 16, 3, padding=1),
    ConvCase((1, 4, 2, 3), 16, 3, stride=5, padding=4),  # taps that only see padding
)


def conv_case(
    shape: ConvCase,
    pattern: str,
    dtype: torch.dtype = torch.float32,
    bias: bool = True,
    activation: str = "none",
) -> Case:
    """``make(generator) -> (x, packed, bias, activation)``."""
    parsed, sizes = parse_pattern(pattern), shape.sizes()

    def make(generator: torch.Generator) -> tuple[Any, ...]:
        weight = torch.randn(shape.out_channels, sizes.columns, generator=generator).to(dtype)
        packed = formats.pack(torch.where(_mask(weight, parsed), weight, 0), parsed)
        x = torch.randn(shape.shape, generator=generator).to(dtype)
        b = torch.randn(shape.out_channels, generator=generator).to(dtype) if bias else None
        return x, packed, b, activation

    size = "x".join(map(str, (*shape.shape, shape.out_channels)))
    kernel = f"k{sizes.kernel_size}-s{sizes.stride}-p{sizes.padding}-d{sizes.dilation}"
    kernel = kernel.replace(", ", "x").replace("[", "").replace("]", "")
    return Case(f"{pattern}-{size}-{kernel}-{str(dtype)[6:]}-{activation}", make)


def _mask(weight: torch.Tensor, pattern: Pattern) -> torch.Tensor:
    if isinstance(pattern, NM):
        return select_nm(weight.abs(), pattern.n, pattern.m, shared=pattern.shared)
    rows, columns = pattern.arguments()[:2]
    return select_block(weight.abs(), int(rows), int(columns), 0.5)
