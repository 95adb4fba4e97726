"""The one float tolerance: error(kernel, fp64) <= 2 * error(torch in the same dtype, fp64) + floor[dtype]."""

from __future__ import annotations

import torch
from torch import Tensor

#: absolute floor, in units of the largest true value
FLOOR = {torch.float32: 2e-6, torch.bfloat16: 8e-3, torch.float16: 1e-3, torch.float64: 1e-14}


def max_error(actual: Tensor, truth: Tensor) -> float:
    """Largest |actual - truth|; positions where both are the same non-finite value do not count."""
    actual, truth = actual.double(), truth.double()
    same = (actual == truth) | (actual.isnan() & truth.isnan())
    difference = torch.where(same, torch.zeros_like(truth), (actual - truth).abs())
    return difference.nan_to_num(nan=float("inf")).max().item() if difference.numel() else 0.0


def assert_accurate(actual: Tensor, truth64: Tensor, same_dtype: Tensor) -> None:
    """Fail unless ``actual`` is at most twice as far from the fp64 truth as torch in the same dtype is."""
    assert actual.dtype == same_dtype.dtype, f"dtype {actual.dtype}, expected {same_dtype.dtype}"
    assert actual.shape == truth64.shape, f"shape {actual.shape}, expected {truth64.shape}"
    finite = truth64[truth64.isfinite()]
    scale = finite.abs().max().item() if finite.numel() else 0.0
    bound = 2 * max_error(same_dtype, truth64) + FLOOR[actual.dtype] * max(scale, 1e-30)
    error = max_error(actual, truth64)
    assert error <= bound, f"error {error:.3e} against fp64 exceeds {bound:.3e}"
