"""What the convolution ops share: sizes, argument checks, the fake and the plain torch product.

``y[b, n, p] = act(sum over k of W[n, k] * x[b, column k of position p] + bias[n])``, the columns in the order of
``weight.reshape(N, -1)``, which is that of ``F.unfold``: channel, row of the kernel, column of the kernel.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from evoprune_kernels._check import check
from evoprune_kernels.formats import PackedWeight
from evoprune_kernels.ops._channels import memory_format
from evoprune_kernels.ops._linear import check_linear, linear_dense

Pair = int | Sequence[int]
#: the sizes in the schemas
SIZES_SCHEMA = (
    "int out_channels, int in_channels, int[] kernel_size, int[] stride, int[] padding, "
    "int[] dilation"
)


def pair(value: Pair, what: str, least: int) -> list[int]:
    """``[rows, columns]`` of a number or of two. ``ValueError`` where one is below ``least``."""
    found = [value, value] if isinstance(value, int) else [int(v) for v in value]
    check(len(found) == 2, f"expected {what} of one number or two, got {found}")
    check(min(found) >= least, f"expected {what} of at least {least}, got {found}")
    return found


@dataclass(frozen=True)
class ConvSizes:
    """The sizes of a convolution, as the ops take them.

    Example:
        >>> from evoprune_kernels.ops._conv import ConvSizes
        >>> ConvSizes.of(16, 8, 3, padding=1).output(28, 28)
        (28, 28)
    """

    out_channels: int
    in_channels: int
    kernel_size: list[int]
    stride: list[int]
    padding: list[int]
    dilation: list[int]

    @staticmethod
    def of(
        out_channels: int,
        in_channels: int,
        kernel_size: Pair,
        stride: Pair = 1,
        padding: Pair = 0,
        dilation: Pair = 1,
    ) -> ConvSizes:
        """Checked. ``ValueError`` with the size that is wrong."""
        check(
            out_channels >= 0 and in_channels >= 1,
            f"expected out_channels >= 0 and in_channels >= 1, got {out_channels} and {in_channels}",
        )
        return ConvSizes(
            out_channels,
            in_channels,
            pair(kernel_size, "kernel_size", 1),
            pair(stride, "stride", 1),
            pair(padding, "padding", 0),
            pair(dilation, "dilation", 1),
        )

    @property
    def arguments(self) -> tuple[int | list[int], ...]:
        """In the order of the schemas."""
        return (
            self.out_channels,
            self.in_channels,
            self.kernel_size,
            self.stride,
            self.padding,
            self.dilation,
        )

    @property
    def columns(self) -> int:
        """K of the weight as a matrix [N, K]."""
        return self.in_channels * self.kernel_size[0] * self.kernel_size[1]

    def output(self, height: int, width: int) -> tuple[int, int]:
        """Rows and columns of the output for those of an input."""
        rows, columns = (
            (size + 2 * self.padding[d] - self.dilation[d] * (self.kernel_size[d] - 1) - 1)
            // self.stride[d]
            + 1
            for d, size in enumerate((height, width))
        )
        return rows, columns


def new_output(x: Tensor, sizes: ConvSizes) -> Tensor:
    """y of a convolution, uninitialised, stored as x is: what every fake returns."""
    shape = (x.shape[0], sizes.out_channels, *sizes.output(x.shape[2], x.shape[3]))
    return torch.empty(shape, dtype=x.dtype, device=x.device, memory_format=memory_format(x))


def check_input(x: Tensor, sizes: ConvSizes) -> None:
    """``ValueError`` unless x is [B, C, H, W] and large enough for the kernel."""
    check(x.dim() == 4, f"expected x of 4 dimensions, got {x.dim()}")
    check(
        x.shape[1] == sizes.in_channels,
        f"expected x of {sizes.in_channels} channels, got {x.shape[1]}",
    )
    check(
        min(sizes.output(x.shape[2], x.shape[3])) >= 1,
        f"expected an input as large as the kernel {sizes.kernel_size} with dilation {sizes.dilation} and padding "
        f"{sizes.padding}, got {list(x.shape[2:])}",
    )


def conv_dense(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    sizes: ConvSizes,
    activation: str,
    scale: Tensor | None = None,
) -> Tensor:
    """``act(unfold(x) weight^T + bias)`` with a dense weight [N, K]; the dtype and memory order of x."""
    check_input(x, sizes)
    y = new_output(x, sizes)
    if y.numel() > 0:
        wide = x.to(torch.promote_types(x.dtype, torch.float32))
        columns = unfold(wide, sizes)
        product = linear_dense(columns, weight, bias, activation, scale)
        y.copy_(product.transpose(1, 2).reshape(y.shape))
    return y


def unfold(x: Tensor, sizes: ConvSizes) -> Tensor:
    """The columns of every output position: x [B, C, H, W] -> [B, H' * W', K]."""
    kernel, dilation, padding, stride = (
        (size[0], size[1])
        for size in (sizes.kernel_size, sizes.dilation, sizes.padding, sizes.stride)
    )
    return F.unfold(x, kernel, dilation, padding, stride).transpose(1, 2)


def check_conv(
    x: Tensor, packed: PackedWeight, bias: Tensor | None, sizes: ConvSizes, activation: str
) -> None:
    """Checks the arguments of a convolution op. Raises ``ValueError`` or ``TypeError`` with both values."""
    check_input(x, sizes)
    expected = (sizes.out_channels, sizes.columns)
    check(
        tuple(packed.shape) == expected,
        f"expected a packed weight of shape {expected}, got {tuple(packed.shape)}",
    )
    probe = x.new_empty(
        0, sizes.columns
    )  # the columns of no position: the rest is as in a linear op
    check_linear(probe, packed, bias, activation)
