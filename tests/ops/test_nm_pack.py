"""nm_pack, nm_unpack and nm_prepare: literals, every ISA level and thread count, gradients, opcheck, refusals."""

from __future__ import annotations

import dataclasses

import pytest
import torch

from evoprune_kernels import ops
from evoprune_kernels.formats import NMWeight
from evoprune_kernels.ops.nm_pack.cases import CASES
from evoprune_kernels.ops.nm_prepare.cases import CASES as PREPARE_CASES
from evoprune_kernels.ops.nm_prepare.reference import nm_prepare_reference, unprepare

evoprune = torch.ops.evoprune


def same_bits(a: torch.Tensor, b: torch.Tensor) -> bool:
    """Equal dtype, shape and bits: NaN equals itself, -0.0 does not equal +0.0."""
    if a.dtype != b.dtype or a.shape != b.shape:
        return False
    a, b = (t.flatten().contiguous().view(torch.uint8) for t in (a, b))
    return torch.equal(a, b)


@pytest.mark.parametrize("case", CASES, ids=lambda c: c.name)
def test_pack_and_unpack_match_the_format(case, isa, threads):
    weight, mask, n, m = case.args()
    expected = NMWeight.pack(weight, n, m, mask=mask)
    packed = ops.nm_pack(weight, n, m, mask)
    packed.validate()
    assert same_bits(packed.values, expected.values)
    assert same_bits(packed.meta, expected.meta)
    dense = torch.where(mask, weight, torch.zeros_like(weight)) + 0.0
    assert same_bits(ops.nm_unpack(packed), dense)
    assert same_bits(ops.nm_unpack(packed, impl="reference"), dense)


@pytest.mark.parametrize("impl", ["cpu", "reference"])
def test_pack_of_shared_rows(impl):
    weight = torch.randn(35, 30)
    mask = ops.select_nm(weight.abs(), 2, 4, shared=16)
    expected = NMWeight.pack(weight, 2, 4, 16, mask=mask)
    packed = ops.nm_pack(weight, 2, 4, mask, shared=16, impl=impl)
    assert same_bits(packed.values, expected.values) and same_bits(packed.meta, expected.meta)
    assert packed.meta.shape[0] == 3
    assert same_bits(ops.nm_unpack(packed, impl=impl), torch.where(mask, weight, 0.0) + 0.0)
    mask[17, :3] = True
    with pytest.raises((ValueError, RuntimeError), match="keeps"):
        ops.nm_pack(weight, 2, 4, mask, shared=16, impl=impl)


def test_literal():
    packed = ops.nm_pack(torch.tensor([[0.0, 5.0, 0.0, 6.0, 7.0, 8.0, 0.0, 0.0]]), 2, 4)
    assert packed.values.tolist() == [[5.0, 6.0, 7.0, 8.0]]
    assert packed.meta.tolist() == [[0x4D]]


def test_prepare_literal():
    """2:4, two rows of eight columns: slot s of row r at values[0, s, r], its index at bits 2s of meta[0, 0, r]."""
    weight = torch.tensor([[0.0, 5, 0, 6, 7, 8, 0, 0], [1, 0, 0, 2, 0, 0, 3, 4]])
    for impl in (None, "reference"):
        values, meta = ops.nm_prepare(ops.nm_pack(weight, 2, 4), impl=impl)
        assert values.shape == (1, 16, 16) and meta.shape == (1, 1, 16)
        assert values[0, :4, 0].tolist() == [5, 6, 7, 8]
        assert values[0, :4, 1].tolist() == [1, 2, 3, 4]
        assert not values[0, 4:].any() and not values[0, :, 2:].any()
        assert meta[0, 0, :3].tolist() == [0b01_00_11_01, 0b11_10_11_00, 0]


@pytest.mark.parametrize("case", PREPARE_CASES, ids=lambda c: c.name)
def test_prepare_matches_its_reference_and_inverts(case, isa, threads):
    values, meta, n, m, shared, columns = case.args()
    expected = nm_prepare_reference(values, meta, n, m, shared, columns)
    packed = NMWeight(values, meta, n, m, (values.shape[0], columns), shared)
    packed.validate()
    for got, wanted in zip(ops.prepare(packed), expected, strict=True):
        assert same_bits(got, wanted)
    dense = unprepare(*expected, values.shape[0], columns, (n, m, shared))
    assert same_bits(dense, packed.unpack())


def test_pack_takes_any_strides():
    weight, mask, n, m = CASES[1].args()
    expected = NMWeight.pack(weight, n, m, mask=mask)
    packed = ops.nm_pack(weight.t().contiguous().t(), n, m, mask.t().contiguous().t())
    assert same_bits(packed.values, expected.values)
    wide = torch.stack([packed.values, packed.values], -1)[..., 0]
    assert same_bits(ops.nm_unpack(dataclasses.replace(packed, values=wide)), expected.unpack())


def test_gradient_reaches_only_what_is_kept():
    weight, mask, n, m = CASES[1].args()
    weight = weight.requires_grad_()
    dense = ops.nm_unpack(ops.nm_pack(weight, n, m, mask))
    upstream = torch.randn(weight.shape)
    (dense * upstream).sum().backward()
    assert same_bits(weight.grad, torch.where(mask, upstream, torch.zeros(())))


def test_gradient_of_unpack_reads_the_stored_places():
    packed = NMWeight.pack(torch.tensor([[0.0, 5.0, 0.0, 6.0, 7.0]]), 2, 4)
    values = packed.values.clone().requires_grad_()
    upstream = torch.tensor([[1.0, 2.0, 3.0, 4.0, 5.0]])
    (ops.nm_unpack(dataclasses.replace(packed, values=values)) * upstream).sum().backward()
    assert values.grad.tolist() == [[2.0, 4.0, 5.0, 0.0]]  # the last place lies beyond column K


@pytest.mark.parametrize("impl", ["cpu", "reference"])
def test_over_full_group_is_named(impl):
    weight = torch.zeros(3, 12)
    weight[2, 8:11] = 1.0
    with pytest.raises(
        (ValueError, RuntimeError), match=r"weight\[2, 8:12\] keeps 3 values, .* 2:4 allows 2"
    ):
        ops.nm_pack(weight, 2, 4, impl=impl)


@pytest.mark.parametrize("impl", ["cpu", "reference"])
def test_prepare_rejects_an_index_beyond_the_group(impl):
    packed = NMWeight.pack(torch.tensor([[1.0, 0.0, 0.0]]), 1, 3)
    broken = dataclasses.replace(packed, meta=torch.full_like(packed.meta, 3))
    with pytest.raises((ValueError, RuntimeError), match="an index 3, expected less than m = 3"):
        ops.nm_prepare(broken, impl=impl)
    with pytest.raises((ValueError, RuntimeError), match="expected less than m = 3"):
        ops.nm_prepare(dataclasses.replace(broken, shared=16), impl=impl)


def test_refusals():
    with pytest.raises(ValueError, match="got 5:4"):
        ops.nm_pack(torch.zeros(2, 8), 5, 4)
    with pytest.raises(ValueError, match=r"mask of shape \(2, 8\), got \(2, 4\)"):
        ops.nm_pack(torch.zeros(2, 8), 2, 4, torch.ones(2, 4, dtype=torch.bool))
    packed = NMWeight.pack(torch.zeros(2, 8), 2, 4)
    short = dataclasses.replace(packed, values=packed.values[:, :3])
    for op in (ops.nm_unpack, ops.nm_prepare):
        with pytest.raises(ValueError, match=r"expected values \(2, 4\).* got \(2, 3\)"):
            op(short)
    with pytest.raises(TypeError, match="got Tensor"):
        ops.prepare(torch.zeros(2, 8))


def test_opcheck():
    weight, mask, n, m = CASES[1].args()
    values, meta = evoprune.nm_pack(weight, mask, n, m)
    columns = weight.shape[1]
    opcheck = torch.library.opcheck
    opcheck(evoprune.nm_pack.default, (weight.requires_grad_(), mask, n, m))
    opcheck(evoprune.nm_unpack.default, (values.clone().requires_grad_(), meta, n, m, columns))
    opcheck(evoprune.nm_prepare.default, (values, meta, n, m, 1, columns))
