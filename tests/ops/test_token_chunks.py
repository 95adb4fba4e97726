"""Many tokens go through a strip kernel in chunks; a last chunk of one token is like any other."""

from __future__ import annotations

import pytest
import torch
from torch.nn import functional as F

from bench.linear import select, split_pattern
from evoprune_kernels import formats, ops
from tests.tolerance import assert_accurate


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("tokens", [32, 33, 49, 65, 97, 129])
@pytest.mark.parametrize("pattern", ["2:4v16", "block:16x16@50", "block:4x4@50", "unstructured@80"])
def test_every_token_is_right(pattern, tokens, dtype, isa, threads):
    """6144 columns: a chunk is a single panel, or 48 rows of x."""
    weight = torch.randn(20, 6144)
    mask = select(weight, *split_pattern(pattern))
    weight = (weight * mask).to(dtype)
    x = torch.randn(tokens, 6144).to(dtype)
    y = ops.linear(x, formats.pack(weight, split_pattern(pattern)[0], mask))
    assert_accurate(y, x.double() @ weight.double().T, F.linear(x, weight))
