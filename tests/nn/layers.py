"""What the tests of the sparse layers share."""

from __future__ import annotations

import torch
from torch import nn
from torch.nn import functional as F

import evoprune_kernels as ek
from evoprune_kernels import _select
from evoprune_kernels.ops import OPS
from tests.tolerance import assert_accurate

PATTERNS = ["2:4", "1:4", "2:4v16", "block:16x16", "unstructured"]


def use_references(monkeypatch):
    """Let the layers run the reference of an op that has no native kernel, instead of staying dense."""
    names = [op.name for op in OPS.values() if op.name.endswith("_linear") and op.reasons()]
    monkeypatch.setattr(_select, "FORCED", dict.fromkeys(names, _select.REFERENCE))


def make(pattern="2:4", inputs=64, outputs=48, bias=True, dtype=torch.float32, **options):
    """A pruned layer in training mode: half of an n:m weight, three quarters of any other."""
    linear = nn.Linear(inputs, outputs, bias=bias, dtype=dtype)
    sparsity = 0.75 if pattern in ("block:16x16", "unstructured") else None
    return ek.SparseLinear.from_linear(linear, pattern, sparsity=sparsity, **options)


def rotate(layer):
    """Another weight of the same pattern."""
    return layer.weight.detach().roll(4, dims=1) * 2


def truth(layer, x):
    """The dense product in float64."""
    bias = None if layer.bias is None else layer.bias.double()
    return F.linear(x.double(), layer.weight.double(), bias)


def assert_runs_sparse(layer, x):
    """The forward uses a kernel and gives what the dense product with the present weight gives."""
    with torch.no_grad():
        y = layer(x)
        assert layer.kernel is not None, layer.dense_reason
        assert_accurate(y, truth(layer, x), F.linear(x, layer.weight, layer.bias))
