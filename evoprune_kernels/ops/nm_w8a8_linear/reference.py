"""``nm_w8a8_linear`` in plain torch: quantise x, an exact integer product, scales; the truth and the fallback."""

from __future__ import annotations

from torch import Tensor

from evoprune_kernels.ops._linear import activate
from evoprune_kernels.ops.nm_prepare_cuda.reference import unprepare_cuda
from evoprune_kernels.ops.w8a8_linear.reference import quantize_tokens


def nm_w8a8_linear_reference(
    x: Tensor,
    values: Tensor,
    meta: Tensor,
    bias: Tensor | None,
    out_features: int,
    in_features: int,
    activation: str,
    scale: Tensor,
) -> Tensor:
    """``act((q W_q^T * scale) * s + bias)``; see ``nm_w8a8_linear``."""
    weight = unprepare_cuda(values, meta, out_features, in_features)
    q, x_scale = quantize_tokens(x)
    sums = q.double() @ weight.t().double()  # exact: below 2^53
    y = sums.float() * scale * x_scale
    return activate(y if bias is None else y + bias.float(), activation).to(x.dtype)
