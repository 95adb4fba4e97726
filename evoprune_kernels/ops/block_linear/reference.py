"""``block_linear`` in plain torch: unpack, then a dense product; the truth, the fallback and the benchmark baseline."""

from __future__ import annotations

from torch import Tensor

from evoprune_kernels._check import check_shape
from evoprune_kernels.formats.block import unpack_block
from evoprune_kernels.ops._linear import check_layout, linear_dense
from evoprune_kernels.ops.block_prepare.reference import strip_rows, unprepare_block


def dense_weight(
    values: Tensor,
    row_ptr: Tensor,
    col_idx: Tensor,
    shape: tuple[int, int],
    block: tuple[int, int],
    layout: str,
) -> Tensor:
    """The dense weight [N, K] of the tensors of either layout."""
    check_layout(layout)
    bn, bk = block
    edges = (bn, bk) if layout == "canonical" else (bk, strip_rows(bn))
    check_shape(values, (values.shape[0], *edges), "values")
    unpack = unpack_block if layout == "canonical" else unprepare_block
    return unpack(values, row_ptr, col_idx, *shape)


def block_linear_reference(
    x: Tensor,
    values: Tensor,
    row_ptr: Tensor,
    col_idx: Tensor,
    bias: Tensor | None,
    out_features: int,
    in_features: int,
    bn: int,
    bk: int,
    activation: str,
    layout: str,
    scale: Tensor | None = None,
) -> Tensor:
    """``act(x W^T + bias)``; see ``block_linear``."""
    shape = (out_features, in_features)
    weight = dense_weight(values, row_ptr, col_idx, shape, (bn, bk), layout)
    return linear_dense(x, weight, bias, activation, scale)
