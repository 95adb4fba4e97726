"""The indices of the backward of ``block_linear``: built once a mask, anew for another, never stale."""

from __future__ import annotations

import dataclasses
import gc

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from evoprune_kernels import ops
from evoprune_kernels.formats import BlockWeight
from evoprune_kernels.ops.block_linear import index


class Builds(TorchDispatchMode):
    """Counts the sorts (one for each transposed index) and the lists of block rows."""

    def __init__(self):
        super().__init__()
        self.sorts = self.rows = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        self.sorts += func is torch.ops.aten.sort.stable
        self.rows += func is torch.ops.aten.repeat_interleave.Tensor
        return func(*args, **(kwargs or {}))


def weight(seed, kept=6):
    """[48, 64] in blocks of 16x16, ``kept`` of 12."""
    generator = torch.Generator().manual_seed(seed)
    chosen = torch.zeros(12, dtype=torch.bool)
    chosen[torch.randperm(12, generator=generator)[:kept]] = True
    mask = chosen.view(3, 4).repeat_interleave(16, 0).repeat_interleave(16, 1)
    dense = torch.randint(-3, 4, (48, 64), generator=generator)
    packed = BlockWeight.pack(dense.float(), 16, 16, mask=mask)
    return dataclasses.replace(packed, values=packed.values.requires_grad_())


def tokens():
    """Small integers, as in the weight: every sum is exact."""
    x = torch.randint(-3, 4, (5, 64), generator=torch.Generator().manual_seed(1))
    return x.float().requires_grad_()


def step(packed):
    """Forward and backward, held to the dense layer; how often each index was built."""
    x = tokens()
    y = ops.block_linear(x, packed)
    with Builds() as builds:
        dx, dw = torch.autograd.grad(y.square().sum(), (x, packed.values))
    dense = dataclasses.replace(packed, values=packed.values.detach()).unpack().requires_grad_()
    expected = torch.nn.functional.linear(x, dense).square().sum()
    expected_dx, expected_dense = torch.autograd.grad(expected, (x, dense))
    assert torch.equal(dx, expected_dx)
    grad = dataclasses.replace(packed, values=dw)
    kept = dataclasses.replace(packed, values=torch.ones_like(dw)).unpack()
    assert torch.equal(grad.unpack(), expected_dense * kept)
    return builds.sorts, builds.rows


def test_built_once_for_many_steps_and_anew_for_another_mask():
    packed = weight(0)
    assert step(packed) == (1, 2)  # the transposed index sorts and lists rows, dW lists rows
    with torch.no_grad():
        packed.values.mul_(0.5)  # an optimizer's step
    assert step(packed) == step(packed) == (0, 0)
    changed = weight(1)
    assert step(changed) == (1, 2)
    assert step(changed) == step(packed) == (0, 0)


def test_a_tensor_that_is_written_to_is_read_again():
    packed, other = weight(0), weight(2)
    assert packed.col_idx.tolist() != other.col_idx.tolist()
    step(packed)
    packed.col_idx.copy_(other.col_idx)
    packed.row_ptr.copy_(other.row_ptr)
    assert step(packed) == (1, 2)
    assert step(packed) == (0, 0)


def test_another_row_ptr_with_the_same_columns_has_its_own_index():
    packed = dataclasses.replace(
        weight(0, kept=2),
        row_ptr=torch.tensor([0, 1, 2, 2], dtype=torch.int32),
        col_idx=torch.tensor([1, 3], dtype=torch.int32),
    )
    step(packed)
    lower = dataclasses.replace(packed, row_ptr=torch.tensor([0, 0, 1, 2], dtype=torch.int32))
    assert step(lower) == (1, 2)


def test_an_index_does_not_outlive_its_weight():
    gc.collect()
    before = len(index._ENTRIES)
    packed = weight(3)
    step(packed)
    assert len(index._ENTRIES) == before + 1
    del packed
    gc.collect()
    assert len(index._ENTRIES) == before


def test_a_compiled_step_follows_the_mask():
    def loss(x, values, row_ptr, col_idx):
        y = ops.block_linear.OP(
            x, values, row_ptr, col_idx, None, 48, 64, 16, 16, "none", "canonical", None
        )
        return y.square().sum()  # fmt: skip

    compiled = torch.compile(loss, backend="aot_eager", fullgraph=True)
    for seed in (0, 1):
        packed = weight(seed)
        x = tokens()
        inputs = (x, packed.values, packed.row_ptr, packed.col_idx)
        found = torch.autograd.grad(compiled(*inputs), inputs[:2])
        expected = torch.autograd.grad(loss(*inputs), inputs[:2])
        for a, b in zip(found, expected, strict=True):
            assert torch.equal(a, b)


@pytest.mark.parametrize("hooked", ["saved", "inference"])
def test_tensors_that_cannot_be_told_apart_are_not_kept(hooked):
    """Saved tensors that come back as others, or that count no writes."""
    packed = weight(4)
    before = len(index._ENTRIES)
    if hooked == "saved":
        with torch.autograd.graph.saved_tensors_hooks(lambda t: t.clone(), lambda t: t):
            step(packed)
        packed.col_idx[:] = weight(5).col_idx
        packed.row_ptr[:] = weight(5).row_ptr
        step(packed)
        del packed
        gc.collect()
        assert len(index._ENTRIES) == before
        return
    with torch.inference_mode():
        row_ptr, col_idx = packed.row_ptr.clone(), packed.col_idx.clone()
    for _ in range(2):
        with Builds() as builds:
            index.transposed(row_ptr, col_idx, 4)
        assert builds.sorts == 1
    assert len(index._ENTRIES) == before
