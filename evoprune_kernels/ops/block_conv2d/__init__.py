"""``evoprune::block_conv2d``: a convolution with a weight of kept blocks."""

from __future__ import annotations

from torch import Tensor

from evoprune_kernels.formats import BlockWeight
from evoprune_kernels.ops._conv import SIZES_SCHEMA, ConvSizes, Pair, check_conv, new_output
from evoprune_kernels.ops._op import define
from evoprune_kernels.ops.block_conv2d.reference import block_conv2d_reference


def _fake(
    x: Tensor,
    values: Tensor,
    row_ptr: Tensor,
    col_idx: Tensor,
    bias: Tensor | None,
    out_channels: int,
    in_channels: int,
    kernel_size: list[int],
    stride: list[int],
    padding: list[int],
    dilation: list[int],
    bn: int,
    bk: int,
    activation: str,
    layout: str,
    scale: Tensor | None = None,
) -> Tensor:
    sizes = ConvSizes(out_channels, in_channels, kernel_size, stride, padding, dilation)
    return new_output(x, sizes)


OP = define(
    f"block_conv2d(Tensor x, Tensor values, Tensor row_ptr, Tensor col_idx, Tensor? bias, {SIZES_SCHEMA}, "
    "int bn, int bk, str activation, str layout, Tensor? scale=None) -> Tensor",
    reference=block_conv2d_reference,
    fake=_fake,
)


def block_conv2d(
    x: Tensor,
    packed: BlockWeight,
    bias: Tensor | None = None,
    activation: str = "none",
    *,
    kernel_size: Pair,
    stride: Pair = 1,
    padding: Pair = 0,
    dilation: Pair = 1,
    impl: str | None = None,
) -> Tensor:
    """A convolution whose weight, as the matrix [N, C * kh * kw], keeps some of its blocks.

    ``y = act(conv2d(x, W) + b)``, ``W = packed.unpack().view(N, C, kh, kw)``

    Args:
        x: [B, C, H, W], contiguous or channels last, float32 or bfloat16 for the C++ kernels; dtypes as for
            ``block_linear``.
        packed: the weight [N, C * kh * kw], rows in the order of ``weight.reshape(N, -1)``.
        bias: [N], float32, bfloat16 or the dtype of x, or None.
        activation: ``"none"``, ``"relu"``, ``"gelu"``, ``"gelu_tanh"`` or ``"silu"``.
        kernel_size, stride, padding, dilation: a number, or one for rows and one for columns; zeros pad.
        impl: insist on an implementation.

    Returns:
        y [B, N, H', W'] in the dtype and memory order of x.

    Raises:
        ValueError, TypeError: if shapes, dtypes or devices do not fit.

    Notes:
        For inference: no gradient (a layer runs dense where one is wanted). Sums, bias and activation are float32;
        deterministic, the same for every number of threads. Pruned places are skipped, so a NaN or an infinity in
        the input does not spread through them. The input is copied once with its padding, and gathered in panels of
        output positions that stay in the cache; a 1x1 kernel over channels-last input is ``block_linear`` itself.
        This call lays the weight out anew each time; ``nn.SparseConv2d`` does it once. No CUDA kernel: there the
        reference runs (``nn.SparseConv2d`` multiplies unfolded columns by the linear kernels instead).

    Source:
        Elsen et al., "Fast Sparse ConvNets", 2020 (1x1); Park et al., "Faster CNNs with Direct Sparse Convolutions and
        Guided Pruning", 2017 (offsets into a padded image).

    Example:
        >>> import torch
        >>> from evoprune_kernels import ops
        >>> packed = ops.block_pack(torch.tensor([[0.0, 0.0, 5.0, 6.0]]), 1, 2)
        >>> ops.block_conv2d(torch.ones(1, 4, 1, 2), packed, kernel_size=1)
        tensor([[[[11., 11.]]]])
    """
    packed.validate()
    sizes = ConvSizes.of(packed.shape[0], x.shape[1], kernel_size, stride, padding, dilation)
    check_conv(x, packed, bias, sizes, activation)
    pattern = packed.pattern.arguments()
    rest = (*sizes.arguments, *pattern, activation, "canonical", packed.scale)
    return OP(x, packed.values, packed.row_ptr, packed.col_idx, bias, *rest, impl=impl)


block_conv2d.OP = OP  # type: ignore[attr-defined]
