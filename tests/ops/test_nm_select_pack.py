"""nm_select_pack: the three ops that it does at once, its public function, opcheck, refusals."""

from __future__ import annotations

import pytest
import torch

from evoprune_kernels import ops
from evoprune_kernels.ops.nm_prepare_cuda.reference import unprepare_cuda
from evoprune_kernels.ops.nm_select_pack.cases import CASES


def test_literal():
    weight = torch.tensor([[-4.0, 1.0, 2.0, 3.0, -0.0, 5.0, 6.0, 0.0]])
    scores = torch.tensor([[4.0, 1.0, 2.0, 3.0, 9.0, 1.0, 1.0, 8.0]])
    packed, (values, meta) = ops.nm_select_pack(weight, scores, 2, 4)
    assert packed.values.tolist() == [[-4.0, 3.0, 0.0, 0.0]]
    assert not packed.values.signbit()[0, 2]
    assert packed.meta.tolist() == [[0b11_00_11_00]]
    assert values[0, :4].tolist() == [-4.0, 3.0, 0.0, 0.0] and not values[:, 4:].any()
    assert meta[0, 0, 0].tolist() == [0x444444CC, 0x44444444, 0x44444444, 0x44444444]


@pytest.mark.parametrize("case", CASES, ids=lambda c: c.name)
def test_is_select_then_pack_then_prepare(case):
    weight, scores, n, m = case.args()
    packed, prepared = ops.nm_select_pack(weight, scores, n, m)
    packed.validate()
    mask = ops.select_nm(scores, n, m)
    dense = torch.where(mask, weight, torch.zeros_like(weight)) + 0.0
    assert torch.equal(packed.unpack().nan_to_num(7.0), dense.nan_to_num(7.0))
    assert (prepared is None) == ((n, m) != (2, 4))
    if prepared is not None:
        again = unprepare_cuda(*prepared, *packed.shape)
        assert torch.equal(again.nan_to_num(7.0), dense.nan_to_num(7.0))


def test_refusals():
    weight = torch.zeros(4, 8)
    with pytest.raises(ValueError, match="got 5:4"):
        ops.nm_select_pack(weight, weight, 5, 4)
    with pytest.raises(ValueError, match=r"scores of shape \(4, 8\), got \(4, 4\)"):
        ops.nm_select_pack(weight, weight[:, :4], 2, 4)
    with pytest.raises(ValueError, match="weight of 2 dimensions, got 1"):
        ops.nm_select_pack(weight[0], weight, 2, 4)
    with pytest.raises(TypeError, match=r"float64, got torch\.int32"):
        ops.nm_select_pack(weight.int(), weight, 2, 4)


def test_opcheck():
    for case in (CASES[6], CASES[9]):
        torch.library.opcheck(torch.ops.evoprune.nm_select_pack.default, case.args())
