"""``nm_linear`` in plain torch: unpack, then a dense product; the truth, the fallback and the benchmark baseline."""

from __future__ import annotations

from torch import Tensor

from evoprune_kernels.formats.nm import repeat_rows, unpack_nm
from evoprune_kernels.ops._linear import NM_LAYOUTS, check_layout, linear_dense
from evoprune_kernels.ops.nm_prepare.reference import unprepare
from evoprune_kernels.ops.nm_prepare_cuda.reference import check_pattern, unprepare_cuda


def dense_weight(
    values: Tensor,
    meta: Tensor,
    shape: tuple[int, int],
    pattern: tuple[int, int, int],
    layout: str,
) -> Tensor:
    """The dense weight [N, K] of the tensors of any layout."""
    check_layout(layout, NM_LAYOUTS)
    if layout == "cpu":
        return unprepare(values, meta, *shape, pattern)
    if layout == "cuda":
        check_pattern(*pattern)
        return unprepare_cuda(values, meta, *shape)
    n, m, shared = pattern
    return unpack_nm(values, repeat_rows(meta, shared, shape[0]), n, m, shape[1])


def nm_linear_reference(
    x: Tensor,
    values: Tensor,
    meta: Tensor,
    bias: Tensor | None,
    out_features: int,
    in_features: int,
    n: int,
    m: int,
    shared: int,
    activation: str,
    layout: str,
    scale: Tensor | None = None,
) -> Tensor:
    """``act(x W^T + bias)``; see ``nm_linear``."""
    weight = dense_weight(values, meta, (out_features, in_features), (n, m, shared), layout)
    return linear_dense(x, weight, bias, activation, scale)
