"""nm_w8a8_linear's reference: the bits of w8a8_linear, opcheck, refusals. The kernel: tests/cuda."""

from __future__ import annotations

import pytest
import torch

from evoprune_kernels import formats, ops
from evoprune_kernels.ops.nm_w8a8_linear.cases import CASES


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_the_results_are_those_of_w8a8_linear(case):
    args = case.args()
    expected = ops.w8a8_linear(*args, impl="reference")
    assert torch.equal(ops.nm_w8a8_linear(*args), expected)


def test_opcheck():
    for case in (CASES[1], CASES[4]):
        x, packed, bias, activation = case.args()
        args = (*ops.nm_prepare_cuda(packed), bias, *packed.shape, activation, packed.scale)
        torch.library.opcheck(torch.ops.evoprune.nm_w8a8_linear.default, (x, *args))


def test_what_it_refuses():
    x, packed, _, _ = CASES[1].args()
    with pytest.raises(ValueError, match="without: quantize"):
        ops.nm_w8a8_linear(x.float(), formats.pack(packed.unpack(), "2:4"))
    with pytest.raises(ValueError, match="2:4 and 2:4v16, got 1:4"):
        weight = torch.zeros(16, 32)
        weight[:, ::4] = 1
        ops.nm_w8a8_linear(torch.zeros(2, 32), formats.pack(weight, "1:4").quantize())
    with pytest.raises(RuntimeError, match="no gradient"):
        ops.nm_w8a8_linear(x.requires_grad_(), packed)
