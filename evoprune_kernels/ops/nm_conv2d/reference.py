"""``nm_conv2d`` in plain torch: unfold, then a dense product with the unpacked weight."""

from __future__ import annotations

from torch import Tensor

from evoprune_kernels.ops._conv import ConvSizes, conv_dense
from evoprune_kernels.ops.nm_linear.reference import dense_weight


def nm_conv2d_reference(
    x: Tensor,
    values: Tensor,
    meta: Tensor,
    bias: Tensor | None,
    out_channels: int,
    in_channels: int,
    kernel_size: list[int],
    stride: list[int],
    padding: list[int],
    dilation: list[int],
    n: int,
    m: int,
    shared: int,
    activation: str,
    layout: str,
    scale: Tensor | None = None,
) -> Tensor:
    """``act(conv2d(x, W) + bias)``; see ``nm_conv2d``."""
    sizes = ConvSizes.of(out_channels, in_channels, kernel_size, stride, padding, dilation)
    shape = (out_channels, sizes.columns)
    weight = dense_weight(values, meta, shape, (n, m, shared), layout)
    return conv_dense(x, weight, bias, sizes, activation, scale)
