"""nm_linear: what holds for this op alone; ``test_linear.py`` holds the rest."""

from __future__ import annotations

import pytest
import torch
from torch.nn import functional as F

from evoprune_kernels import ops
from evoprune_kernels.formats import NMWeight
from tests.ops.linears import ACTIVATE, LAYOUTS, NM
from tests.tolerance import assert_accurate


def test_literal():
    packed = NMWeight.pack(torch.tensor([[0.0, 5.0, 0.0, 6.0], [1.0, 0.0, 0.0, 0.0]]), 2, 4)
    x = torch.tensor([[1.0, 2.0, 3.0, 4.0]])
    for layout in LAYOUTS:
        y = NM.call(x, packed, torch.tensor([0.5, -2.0]), "relu", layout)
        assert y.tolist() == [[34.5, 0.0]]


@pytest.mark.parametrize("tokens", [6, 70])  # rows in lanes; tokens in lanes and a rest
def test_special_values_stay_in_their_row_and_token(tokens, isa):
    nan, inf = float("nan"), float("inf")
    weight = torch.zeros(20, 40)
    weight[:, ::4], weight[:, 1::4] = 1.0, -2.0
    weight[3, 4], weight[5, 8], weight[6, 12] = nan, inf, -0.0
    packed = NMWeight.pack(weight, 2, 4, mask=torch.arange(40).expand(20, 40) % 4 < 2)
    x = torch.ones(tokens, 40)
    x[2, 2], x[4, 0] = nan, inf  # column 2 is kept nowhere, column 0 everywhere
    y = NM.call(x, packed)
    expected = torch.full((tokens, 20), -10.0)
    expected[4] = inf
    expected[:, 3], expected[:, 5], expected[:, 6] = nan, inf, -11.0
    expected[4, 6] = inf
    assert torch.equal(y.nan_to_num(nan=123.0), expected.nan_to_num(nan=123.0))


@pytest.mark.parametrize("activation", ["relu", "gelu", "gelu_tanh", "silu"])
def test_activations_over_the_whole_range(activation, isa):
    special = [
        0.0,
        -0.0,
        float("inf"),
        -float("inf"),
        float("nan"),
        1e-30,
        -1e-30,
        3e38,
        -3e38,
        1e-42,
    ]
    points = torch.cat(
        [torch.linspace(-30, 30, 4001), torch.linspace(-100, 100, 401), torch.tensor(special)]
    )
    packed = NMWeight.pack(torch.tensor([[1.0, 0.0, 0.0, 0.0]] * 16), 2, 4)
    x = F.pad(points[:, None], (0, 3))
    y = NM.call(x, packed, None, activation)[:, 0]
    truth = ACTIVATE[activation](points.double())
    same = ACTIVATE[activation](points)
    # float64 says what is special: torch's own AVX-512 float32 gelu is NaN at infinity and inf at 3e38
    assert torch.equal(y.isnan(), truth.isnan())
    for low, high in [
        (-1, 1),
        (-5, 5),
        (-30, 30),
        (-100, 100),
    ]:  # absolute error, scaled to each range
        inside = (points >= low) & (points <= high)
        assert_accurate(y[inside], truth[inside], same[inside])
    finite = points.isfinite()
    special_truth = truth[~finite].float()
    assert torch.equal(y[~finite].nan_to_num(nan=7.0), special_truth.nan_to_num(nan=7.0))


def test_the_op_itself_refuses_what_does_not_fit():
    """The second wall: the raw op, which the public function would not have called."""
    x, packed, bias = NM.small()
    values, meta = ops.prepare(packed)
    good = [x, values, meta, bias, 33, 61, 2, 4, 1, "none", "cpu"]
    ops.nm_linear.OP(*good)
    for position, wrong, match in [
        (0, torch.zeros(2, 60), "in_features = 61, got 60"),
        (0, x.double(), "Double"),
        (1, values[:, :-1], "values"),
        (1, values.half(), "values"),
        (2, meta.long(), "meta"),
        (2, meta[:1], "meta"),
        (3, torch.zeros(34), "bias"),
        (6, 5, "n=5"),
        (8, 4, "shared = 1 or 16, got 4"),
        (9, "tanh", "tanh"),
        (10, "gpu", "gpu"),
    ]:
        arguments = list(good)
        arguments[position] = wrong
        with pytest.raises((RuntimeError, ValueError), match=match):
            ops.nm_linear.OP(*arguments)
