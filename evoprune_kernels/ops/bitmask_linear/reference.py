"""``bitmask_linear`` in plain torch: unpack, then a dense product; the truth, the fallback and the baseline."""

from __future__ import annotations

from torch import Tensor

from evoprune_kernels.formats.bitmask import unpack_bitmask
from evoprune_kernels.ops._linear import check_layout, linear_dense
from evoprune_kernels.ops.bitmask_prepare.reference import unprepare_bitmask


def dense_weight(
    values: Tensor, bits: Tensor, row_ptr: Tensor, in_features: int, layout: str
) -> Tensor:
    """The dense weight [N, K] of the tensors of either layout (``bits`` are columns in the layout ``cpu``)."""
    check_layout(layout)
    if layout == "cpu":
        return unprepare_bitmask(values, bits, row_ptr, in_features)
    return unpack_bitmask(values, bits, in_features)


def bitmask_linear_reference(
    x: Tensor,
    values: Tensor,
    bits: Tensor,
    row_ptr: Tensor,
    bias: Tensor | None,
    out_features: int,
    in_features: int,
    activation: str,
    layout: str,
    scale: Tensor | None = None,
) -> Tensor:
    """``act(x W^T + bias)``; see ``bitmask_linear``."""
    weight = dense_weight(values, bits, row_ptr, in_features, layout)
    return linear_dense(x, weight, bias, activation, scale)
