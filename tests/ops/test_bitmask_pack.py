"""bitmask_pack and bitmask_unpack: values, gradients, opcheck. The format itself: tests/formats/test_bitmask.py."""

from __future__ import annotations

import pytest
import torch

from evoprune_kernels import ops
from evoprune_kernels.ops.bitmask_pack.cases import CASES


@pytest.mark.parametrize("impl", [None, "reference"])
@pytest.mark.parametrize("case", CASES, ids=lambda c: c.name)
def test_round_trip(case, impl):
    weight, mask = case.args()
    packed = ops.bitmask_pack(weight, mask, impl=impl)
    packed.validate()
    assert packed.values.numel() == mask.sum()
    assert torch.equal(ops.bitmask_unpack(packed, impl=impl), weight * mask)


def test_gradients_flow_through_kept_entries_only():
    weight = torch.randn(5, 11, requires_grad=True)
    mask = torch.rand(5, 11) < 0.5
    scale = torch.randn(5, 11)
    (ops.bitmask_unpack(ops.bitmask_pack(weight, mask)) * scale).sum().backward()
    assert torch.equal(weight.grad, scale * mask)


def test_gradcheck():
    weight = torch.randn(5, 11, dtype=torch.float64, requires_grad=True)
    mask = torch.rand(5, 11) < 0.5
    assert torch.autograd.gradcheck(
        lambda w: ops.bitmask_unpack(ops.bitmask_pack(w, mask)), (weight,)
    )


def test_non_contiguous():
    weight = torch.randn(12, 20).t()
    assert torch.equal(ops.bitmask_unpack(ops.bitmask_pack(weight)), weight)


def test_rejects_bad_arguments():
    with pytest.raises(ValueError, match=r"mask of shape \(4, 4\), got \(2, 2\)"):
        ops.bitmask_pack(torch.zeros(4, 4), torch.ones(2, 2, dtype=torch.bool))
    with pytest.raises(ValueError, match="weight of 2 dimensions, got 1"):
        ops.bitmask_pack(torch.zeros(4))


def test_opcheck():
    weight = torch.randn(9, 13, requires_grad=True)
    mask = torch.rand(9, 13) < 0.5
    torch.library.opcheck(torch.ops.evoprune.bitmask_pack.default, (weight, mask))
    packed = ops.bitmask_pack(weight.detach(), mask)
    values = packed.values.requires_grad_()
    args = (values, packed.bits, packed.row_ptr, 13)
    torch.library.opcheck(torch.ops.evoprune.bitmask_unpack.default, args)
