"""Rows of thousands of terms: sums are taken in pieces, so rounding grows no faster than torch's own."""

from __future__ import annotations

import pytest
import torch
from torch.nn import functional as F

from bench.linear import select, split_pattern
from evoprune_kernels import formats, ops

PATTERNS = (
    "2:4",
    "1:4",
    "3:8",
    "2:4v16",
    "block:16x16@50",
    "block:8x8@50",
    "block:1x16@50",
    "unstructured@50",
)


def rms(error: torch.Tensor) -> float:
    return error.square().mean().sqrt().item()


@pytest.mark.parametrize("tokens", [1, 3, 8, 16, 33, 70])
@pytest.mark.parametrize("pattern", PATTERNS)
def test_rounding_is_at_most_twice_torchs(pattern, tokens, isa):
    """Without the floor of tests/tolerance.py, which is as large as what is looked for."""
    x = torch.randn(tokens, 6144)
    weight = torch.randn(48, 6144)
    mask = select(weight, *split_pattern(pattern))
    weight, packed = weight * mask, formats.pack(weight, split_pattern(pattern)[0], mask)
    truth = x.double() @ weight.double().T
    error, of_torch = rms(ops.linear(x, packed) - truth), rms(F.linear(x, weight) - truth)
    assert error <= 2 * of_torch, f"rms error {error:.2e}, torch has {of_torch:.2e}"
