"""bitmask_linear: what holds for this op alone; ``test_linear.py`` holds the rest."""

from __future__ import annotations

import pytest
import torch
from torch.nn import functional as F

from evoprune_kernels import ops
from evoprune_kernels.formats import BitmaskWeight
from tests.ops.linears import BITMASK, LAYOUTS, cut, poke
from tests.tolerance import assert_accurate


def test_literal():
    packed = BitmaskWeight.pack(torch.tensor([[0.0, 5.0, 0.0, 6.0], [1.0, 0.0, 0.0, 0.0]]))
    x = torch.tensor([[1.0, 2.0, 3.0, 4.0]])
    for layout in LAYOUTS:
        y = BITMASK.call(x, packed, torch.tensor([0.5, -2.0]), "relu", layout)
        assert y.tolist() == [[34.5, 0.0]]


def test_opcheck_of_prepare():
    packed = BITMASK.small()[1]
    arguments = (*packed.tensors().values(), packed.shape[1])
    torch.library.opcheck(torch.ops.evoprune.bitmask_prepare.default, arguments)


@pytest.mark.parametrize("tokens", [1, 9, 70])
def test_nan_and_infinity_reach_only_their_outputs(tokens, isa):
    """A kept entry spreads them; a removed one does not read x at all."""
    _, packed, _ = BITMASK.small()
    x = torch.ones(tokens, 61)
    x[0, 3], x[-1, 60] = float("nan"), float("inf")
    mask = packed.unpack() != 0
    bad = torch.zeros(tokens, 33, dtype=torch.bool)
    bad[0] |= mask[:, 3]
    bad[-1] |= mask[:, 60]
    assert torch.equal(~BITMASK.call(x, packed, impl="cpu").isfinite(), bad)


@pytest.mark.parametrize("stored", [torch.float32, torch.bfloat16, torch.int8], ids=str)
@pytest.mark.parametrize("columns", [70, 70_000])
def test_one_token_and_rows_of_every_length(stored, columns, isa):
    """Rows of 0 to 69 entries, more than four vectors of any level: vectors, and the one that ends with the row."""
    places = torch.stack([torch.randperm(columns)[:70].sort().values for _ in range(70)])
    mask = torch.zeros(70, columns, dtype=torch.bool)
    for row in range(70):
        mask[row, places[row, :row]] = True
    packed = BitmaskWeight.pack(torch.randn(70, columns), mask=mask)
    packed = packed.quantize() if stored == torch.int8 else packed.to(stored)
    x, weight = torch.randn(1, columns), packed.unpack().float()
    truth = F.linear(x.double(), weight.double())
    assert_accurate(ops.linear(x, packed), truth, F.linear(x, weight))


def test_the_last_vector_of_a_row_adds_nothing_twice(isa):
    """Infinity among the entries that it repeats is infinity once, not NaN."""
    mask = torch.ones(1, 37, dtype=torch.bool)
    packed = BitmaskWeight.pack(torch.ones(1, 37), mask=mask)
    for column in range(37):
        x = torch.ones(1, 37)
        x[0, column] = float("inf")
        assert BITMASK.call(x, packed, impl="cpu").tolist() == [[float("inf")]]


CORRUPT = [
    ("canonical", poke(1, 0, 0), "bits of row 0: expected .* set, as row_ptr says, got"),
    ("canonical", poke(1, 7, 255), "bits of row 0"),
    ("canonical", poke(2, 0, 1), "row_ptr must rise from 0"),
    ("canonical", poke(2, 1, 9999), "row_ptr must rise from 0"),
    ("canonical", cut(0), "row_ptr must rise from 0"),
    ("canonical", cut(1), r"bits.size\(0\) = 33, got 32"),
    ("canonical", cut(2), r"row_ptr.size\(0\) = 34, got 33"),
    ("cpu", poke(2, 1, 9999), "row_ptr must rise from 0"),
    ("cpu", cut(0), "row_ptr must rise from 0"),
    ("cpu", cut(1), r"columns.size\(0\)"),
]


@pytest.mark.parametrize("layout, change, match", CORRUPT)
def test_corrupt_tensors_are_refused_by_the_kernel(layout, change, match):
    x, packed, _ = BITMASK.small()
    tensors = list(ops.prepare(packed) if layout == "cpu" else packed.tensors().values())
    change(tensors)
    rest = (*packed.shape, *packed.pattern.arguments(), "none", layout)
    with pytest.raises(RuntimeError, match=match):
        ops.bitmask_linear.OP(x, *tensors, None, *rest, impl="cpu")
