"""What ``SparseLinear`` gives to the CUDA kernels: ``bind(..., device="cuda")`` runs as bound."""

from __future__ import annotations

import pytest
import torch

from evoprune_kernels import formats
from evoprune_kernels.ops import OPS
from evoprune_kernels.ops.prepare import bind, cuda_unfit
from tests.tolerance import assert_accurate

PATTERNS = ["2:4", "2:4v16", "block:16x16", "unstructured"]


@pytest.mark.parametrize("pattern", PATTERNS)
@pytest.mark.parametrize("tokens", [3, 40])
def test_a_bound_weight_is_the_dense_layer(gpu, pattern, tokens):
    torch.manual_seed(0)
    weight = torch.randn(40, 72)
    parsed = formats.parse_pattern(pattern)
    mask = torch.rand(40, 72) < 0.4
    if pattern.startswith("2:4"):
        mask = (torch.arange(72) % 4 < 2).expand(40, 72)
    if pattern.startswith("block"):
        mask = torch.rand(3, 5).repeat_interleave(16, 0).repeat_interleave(16, 1)[:40, :72] < 0.5
    weight = (weight * mask).half()
    bound = bind(formats.pack(weight, parsed, mask), "relu", device="cuda")
    x, bias = torch.randn(tokens, 72).half(), torch.randn(40)
    y = gpu.call(bound.op.name, x, *bound.tensors.values(), bias, *bound.tail, None)
    truth = torch.relu(torch.nn.functional.linear(x.double(), weight.double(), bias.double()))
    same = torch.relu(torch.nn.functional.linear(x, weight, bias.half()))
    assert_accurate(y, truth, same)


def test_a_bound_weight_in_integers_is_the_cpu_kernel(gpu):
    torch.manual_seed(0)
    weight = torch.randn(40, 72) * (torch.arange(72) % 4 < 2)
    packed = formats.pack(weight, "2:4").quantize()
    x, bias = torch.randn(20, 72), torch.randn(40)
    found = []
    for device, call in (("cuda", gpu.call), ("cpu", lambda name, *args: OPS[name](*args))):
        bound = bind(packed, "relu", w8a8=True, device=device)
        found.append(
            call(bound.op.name, x, *bound.tensors.values(), bias, *bound.tail, packed.scale)
        )
    assert torch.equal(*found)


@pytest.mark.parametrize(
    "pattern, w8a8, reason",
    [
        ("1:4", False, "take 2:4 of the n:m patterns, got 1:4"),
        ("block:16x1", False, "blocks of edges 16, 32, 64, 128, got block:16x1"),
        ("block:16x16", True, "multiply integers for 2:4 only, got block:16x16"),
    ],
)
def test_what_no_cuda_kernel_takes_has_a_reason(pattern, w8a8, reason):
    assert reason in cuda_unfit(formats.parse_pattern(pattern), w8a8=w8a8)
    packed = formats.pack(torch.zeros(16, 16), pattern)
    with pytest.raises(ValueError, match=reason):
        bind(packed, "none", w8a8=w8a8, device="cuda")
