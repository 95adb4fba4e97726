"""``w8a8_linear`` in plain torch: quantise x, an exact integer product, scales; the truth and the fallback."""

from __future__ import annotations

import torch
from torch import Tensor

from evoprune_kernels.formats.base import LARGEST_INT8
from evoprune_kernels.ops._linear import activate
from evoprune_kernels.ops.w8a8_prepare.reference import unprepare


def quantize_tokens(x: Tensor) -> tuple[Tensor, Tensor]:
    """``(q, scale)`` of x [..., K]: int8 [..., K] in [-127, 127] and float32 [..., 1], one a token.

    ``scale = max |x| / 127``, ``q = round(x * (1 / scale))``, half to even. A token of zeros has scale 0, and so has
    one so small that ``1 / scale`` overflows; one with a NaN or an infinity has the scale NaN and is 0.

    Example:
        >>> import torch
        >>> from evoprune_kernels.ops.w8a8_linear.reference import quantize_tokens
        >>> q, scale = quantize_tokens(torch.tensor([[-2.54, 0.01, 1.0]]))
        >>> q.tolist(), round(scale.item(), 6)
        ([[-127, 0, 50]], 0.02)
    """
    wide = x.float()
    if x.shape[-1] == 0:
        return wide.to(torch.int8), wide.new_zeros(*x.shape[:-1], 1)
    largest = wide.abs().amax(-1, keepdim=True)
    inverse = 1 / (largest / LARGEST_INT8)
    usable = largest.isfinite() & inverse.isfinite()
    q = (wide * torch.where(usable, inverse, 0)).round()
    q = torch.where(usable, q, 0).to(torch.int8)  # 0 * inf is NaN
    scale = torch.where(usable, largest / LARGEST_INT8, 0)
    return q, torch.where(largest.isfinite(), scale, torch.nan)


def dequantize_tokens(x: Tensor) -> Tensor:
    """x as ``w8a8_linear`` sees it: ``q * scale`` in float64."""
    q, scale = quantize_tokens(x)
    return q.double() * scale.double()


def w8a8_linear_reference(
    x: Tensor,
    values: Tensor,
    row_ptr: Tensor,
    columns: Tensor,
    row_sums: Tensor,
    bias: Tensor | None,
    out_features: int,
    in_features: int,
    picks: str,
    activation: str,
    scale: Tensor,
) -> Tensor:
    """``act((q W_q^T * scale) * s + bias)``; see ``w8a8_linear``."""
    weight = unprepare((values, row_ptr, columns, row_sums), (out_features, in_features), picks)
    q, x_scale = quantize_tokens(x)
    sums = q.double() @ weight.t().double()  # exact: below 2^53
    y = sums.float() * scale * x_scale
    return activate(y if bias is None else y + bias.float(), activation).to(x.dtype)
