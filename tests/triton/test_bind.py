"""What ``SparseLinear`` gives to the Triton kernels where no CUDA kernel is: ``bind(..., impl="triton")`` runs."""

from __future__ import annotations

import pytest
import torch
from torch.nn import functional as F

import evoprune_kernels as ek
from evoprune_kernels import _select, formats
from evoprune_kernels.nn import packed as layers
from evoprune_kernels.ops import OPS
from evoprune_kernels.ops.prepare import bind, uses_triton
from tests.tolerance import assert_accurate
from tests.triton.registered import on_cpu

#: three that the CUDA kernels take, two that they do not
PATTERNS = ["2:4", "block:16x16", "unstructured", "1:4", "block:16x1"]


def pruned(pattern, dtype=torch.float32):
    torch.manual_seed(0)
    parsed = formats.parse_pattern(pattern)
    linear = torch.nn.Linear(72, 40, dtype=dtype)
    sparsity = None if isinstance(parsed, formats.NM) else 0.5
    return ek.SparseLinear.from_linear(linear, pattern, sparsity=sparsity, activation="relu").eval()


def dense(layer, x):
    return torch.relu(F.linear(x, layer.weight, layer.bias)).detach()


@pytest.mark.parametrize("pattern", PATTERNS)
@pytest.mark.parametrize("tokens", [3, 40])
def test_a_bound_weight_is_the_dense_layer(run, pattern, tokens):
    layer = pruned(pattern)
    packed = formats.pack(layer.weight.detach(), layer.pattern)
    bound = bind(packed, "relu", device="cuda", impl="triton")
    assert bound.run is bound.op.triton[0] and bound.tail[-1] == "canonical"
    x = torch.randn(tokens, 72)
    bias = layer.bias.detach()
    y = run(bound.op.name, x, *bound.tensors.values(), bias, *bound.tail, None)
    truth = torch.relu(F.linear(x.double(), layer.weight.double(), bias.double()))
    assert_accurate(y, truth.detach(), dense(layer, x))


@pytest.fixture
def on_triton(simulated, monkeypatch):
    """Layers on the CPU pack for the Triton kernels, and these run on the simulator."""
    monkeypatch.setattr(layers.PackedCache, "_impl", lambda self: _select.TRITON)
    names = ("nm_linear", "block_linear", "bitmask_linear")
    with on_cpu(simulated, *(f"evoprune_triton::{name}" for name in names)) as launched:
        yield launched


@pytest.mark.parametrize("stored", [None, "int8"])
@pytest.mark.parametrize("pattern", PATTERNS)
def test_a_layer_runs_them_eager_and_compiled(on_triton, pattern, stored):
    torch._dynamo.reset()
    layer = pruned(pattern)
    layer = layer.twin(stored=stored).eval() if stored else layer
    layer.pack()
    assert "[triton]" in layer.kernel
    x = torch.randn(2, 3, 72)
    with torch.no_grad():
        eager = layer(x)
        assert len(on_triton) == 1
        compiled = torch.compile(layer, backend="aot_eager", fullgraph=True)(x)
    assert len(on_triton) == 2 and torch.equal(eager, compiled)
    exact = torch.relu(F.linear(x, layer.stored_weight(), layer.bias)).detach()
    torch.testing.assert_close(eager, exact)


def test_triton_serves_what_no_cuda_kernel_does(monkeypatch):
    """With ``_cuda.so`` only the patterns that it does not take, without it all; ``EVOPRUNE_IMPL`` insists."""

    def served():
        return [uses_triton(formats.parse_pattern(pattern)) for pattern in PATTERNS]

    kind = type(OPS["nm_linear"])
    monkeypatch.setattr(kind, "reasons", lambda self, device: {"cuda": "not built"})
    assert served() == [True] * 5
    assert not uses_triton(formats.parse_pattern("2:4"), w8a8=True)
    monkeypatch.setattr(kind, "reasons", lambda self, device: {})
    assert served() == [False, False, False, True, True]
    monkeypatch.setattr(_select, "FORCED", {"nm_linear": "triton", "block_linear": "cuda"})
    assert served() == [True, False, False, True, False]
    monkeypatch.setattr(kind, "triton_reasons", lambda self: {"triton": "not installed"})
    assert served() == [False] * 5
