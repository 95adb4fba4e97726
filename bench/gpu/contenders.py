"""Dense layers, ours and torch's sparse ones as contenders over a stack of equal layers: the weights stay cold.

A contender is a callable that runs every layer of its stack once. What cannot be built here (a torch without
cuSPARSELt, an architecture that CUTLASS's kernel refuses, a shape) is left out with its reason.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import linear

from evoprune_kernels import _select, formats
from evoprune_kernels.ops.prepare import bind

#: largest error of a contender, in units of the largest true value, that is still the same product
TOLERANCE = {torch.float16: 1e-2, torch.bfloat16: 4e-2, torch.float32: 1e-2}
Layers = list[Callable[[Tensor], Tensor]]


def dense(weights: list[Tensor]) -> Layers:
    """cuBLAS on the masked dense weights."""
    return [lambda x, w=weight: linear(x, w) for weight in weights]


def ours(weights: list[Tensor], pattern: str, device: str) -> Layers:
    """The CUDA kernel of a pattern; on the CPU, where only this program is tested, the reference."""

    def layer(weight: Tensor) -> Callable[[Tensor], Tensor]:
        packed = formats.pack(weight.cpu(), pattern)
        bound = bind(packed, "none", device="cuda")
        tensors = [tensor.to(device) for tensor in bound.tensors.values()]
        impl = None if device == "cuda" else _select.REFERENCE
        return lambda x: bound.op(x, *tensors, None, *bound.tail, None, impl=impl)

    return [layer(weight) for weight in weights]


@contextmanager
def _forced_cutlass(value: bool) -> Iterator[None]:
    from torch.sparse import SparseSemiStructuredTensor

    before = SparseSemiStructuredTensor._FORCE_CUTLASS
    SparseSemiStructuredTensor._FORCE_CUTLASS = value
    try:
        yield
    finally:
        SparseSemiStructuredTensor._FORCE_CUTLASS = before


def cutlass(weights: list[Tensor]) -> Layers:
    """torch's semi-structured tensors on CUTLASS."""
    from torch.sparse import to_sparse_semi_structured

    with _forced_cutlass(True):
        sparse = [to_sparse_semi_structured(weight) for weight in weights]
    return [lambda x, w=weight: linear(x, w) for weight in sparse]


def cusparselt(weights: list[Tensor], x: Tensor) -> Layers:
    """torch's semi-structured tensors on cuSPARSELt, by the algorithm that its own search finds best."""
    compressed = [torch._cslt_compress(weight) for weight in weights]
    algorithm = int(torch._cslt_sparse_mm_search(compressed[0], x.t()))

    def layer(weight: Tensor) -> Callable[[Tensor], Tensor]:
        # W x^T, written transposed: y in rows of tokens
        return lambda x: torch._cslt_sparse_mm(
            weight, x.t(), alg_id=algorithm, transpose_result=True
        ).t()

    def as_rows(multiply: Callable[[Tensor], Tensor]) -> Callable[[Tensor], Tensor]:
        return lambda x: y if (y := multiply(x)).shape[0] == x.shape[0] else y.t()

    return [as_rows(layer(weight)) for weight in compressed]


def bsr(weights: list[Tensor], edge: int) -> Layers:
    """torch's block-compressed rows."""
    sparse = [weight.to_sparse_bsr((edge, edge)) for weight in weights]
    return [lambda x, w=weight: linear(x, w) for weight in sparse]


def build(
    makers: dict[str, Callable[[], Layers]], x: Tensor, truth: Tensor
) -> tuple[dict[str, Callable[[], object]], dict[str, str]]:
    """Contenders that give the right product, and the others with the reason.

    Args:
        makers: name -> a function that makes its layers.
        x: [M, K]
        truth: [M, N] the product of the first layer in float64.
    """
    right: dict[str, Callable[[], object]] = {}
    left_out: dict[str, str] = {}
    for name, make in makers.items():
        try:
            layers = make()
            error = relative_error(layers[0](x), truth)
        except Exception as failure:  # of any library: its words are the reason
            left_out[name] = f"{type(failure).__name__}: {str(failure).splitlines()[0][:200]}"
            continue
        if not error <= TOLERANCE[x.dtype]:
            left_out[name] = f"wrong by {error:.1e} of the largest value"
            continue
        right[name] = _walk(layers, x)
    return right, left_out


def _walk(layers: Layers, x: Tensor) -> Callable[[], Any]:
    def walk() -> None:
        for layer in layers:
            layer(x)

    return walk


def relative_error(y: Tensor, truth: Tensor) -> float:
    """Largest error in units of the largest true value; infinity for another shape or a NaN."""
    if y.shape != truth.shape:
        return float("inf")
    gap = (y.double() - truth).abs().max() / truth.abs().max().clamp_min(1e-30)
    return float(gap.nan_to_num(nan=torch.inf))
