"""block_pack and block_unpack: values, gradients, opcheck. The format itself: tests/formats/test_block.py."""

from __future__ import annotations

import pytest
import torch

from evoprune_kernels import ops
from evoprune_kernels.ops.block_pack.cases import CASES


@pytest.mark.parametrize("impl", [None, "reference"])
@pytest.mark.parametrize("case", CASES, ids=lambda c: c.name)
def test_round_trip(case, impl):
    weight, mask, bn, bk = case.args()
    packed = ops.block_pack(weight, bn, bk, mask, impl=impl)
    packed.validate()
    assert packed.values.shape[1:] == (bn, bk)
    assert torch.equal(ops.block_unpack(packed, impl=impl), weight * mask)


def test_gradients_flow_through_kept_entries_only():
    weight = torch.randn(5, 7, requires_grad=True)
    mask = torch.zeros(5, 7, dtype=torch.bool)
    mask[:2, 2:4] = mask[4:, 6:] = True
    mask[0, 2] = False  # removed inside a kept block
    scale = torch.randn(5, 7)
    (ops.block_unpack(ops.block_pack(weight, 2, 2, mask)) * scale).sum().backward()
    assert torch.equal(weight.grad, scale * mask)


def test_gradcheck():
    weight = torch.randn(5, 7, dtype=torch.float64, requires_grad=True)
    mask = torch.rand(5, 7) < 0.5
    assert torch.autograd.gradcheck(
        lambda w: ops.block_unpack(ops.block_pack(w, 2, 3, mask)), (weight,)
    )


def test_non_contiguous():
    weight = torch.randn(12, 20).t()
    assert torch.equal(ops.block_unpack(ops.block_pack(weight, 4, 4)), weight)


def test_rejects_bad_arguments():
    with pytest.raises(ValueError, match="300x4"):
        ops.block_pack(torch.zeros(4, 4), 300, 4)
    with pytest.raises(ValueError, match=r"mask of shape \(4, 4\), got \(2, 2\)"):
        ops.block_pack(torch.zeros(4, 4), 2, 2, torch.ones(2, 2, dtype=torch.bool))
    with pytest.raises(TypeError, match="weight of dtype"):
        ops.block_pack(torch.zeros(4, 4, dtype=torch.int32), 2, 2)


def test_opcheck():
    weight = torch.randn(9, 13, requires_grad=True)
    mask = torch.rand(9, 13) < 0.5
    torch.library.opcheck(torch.ops.evoprune.block_pack.default, (weight, mask, 4, 2))
    packed = ops.block_pack(weight.detach(), 4, 2, mask)
    values = packed.values.requires_grad_()
    args = (values, packed.row_ptr, packed.col_idx, 9, 13)
    torch.library.opcheck(torch.ops.evoprune.block_unpack.default, args)
