"""topk_channels: literal indices, an independent oracle, bad input, opcheck."""

from __future__ import annotations

import math

import pytest
import torch

from evoprune_kernels import ops
from evoprune_kernels.ops.topk_channels.cases import CASES


def by_hand(scores: torch.Tensor, k: int) -> torch.Tensor:
    """The contract, word by word, in Python."""
    rows = []
    for row in torch.atleast_2d(scores.float()).tolist():
        order = sorted(
            range(len(row)), key=lambda i: (row[i] != row[i], -row[i] if row[i] == row[i] else 0)
        )
        rows.append(sorted(order[:k]))
    return torch.tensor(rows, dtype=torch.int64).reshape(*scores.shape[:-1], k)


def test_literal():
    scores = torch.tensor([[0.5, 2.0, 2.0, float("nan")], [-0.0, 0.0, -1.0, -float("inf")]])
    assert ops.topk_channels(scores, 1).tolist() == [[1], [0]]
    assert ops.topk_channels(scores, 2).tolist() == [[1, 2], [0, 1]]
    assert ops.topk_channels(scores[0], 3).tolist() == [0, 1, 2]


@pytest.mark.usefixtures("isa")
@pytest.mark.parametrize("case", CASES, ids=lambda c: c.name)
def test_matches_the_contract(case):
    scores, k = case.args()
    assert torch.equal(ops.topk_channels(scores, k), by_hand(scores, k))


def test_non_contiguous():
    scores = torch.randn(12, 20).t()
    assert torch.equal(ops.topk_channels(scores, 5), by_hand(scores, 5))


@pytest.mark.parametrize("k", [-1, 9])
def test_rejects_bad_k(k):
    with pytest.raises(ValueError, match=f"expected 0 <= k <= 8, got k={k}"):
        ops.topk_channels(torch.zeros(2, 8), k)


def test_rejects_bad_shape():
    with pytest.raises(ValueError, match="1 or 2 dimensions, got 3"):
        ops.topk_channels(torch.zeros(2, 8, 2), 1)


# ---- topk_abs_channels ----
def sizes_by_hand(x: torch.Tensor) -> torch.Tensor:
    """Exact sums of |x| in Python, where the values allow it; inf for a NaN."""
    sums = [sum(abs(v) for v in x[:, c].flatten().tolist()) for c in range(x.shape[1])]
    return torch.tensor([math.inf if math.isnan(s) else s for s in sums])


def integers(*shape: int, last: bool = False, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    """Small whole numbers: their sums are exact in any order, and ties are common."""
    x = torch.randint(-3, 4, shape).to(dtype)
    return x.contiguous(memory_format=torch.channels_last) if last else x


LAYOUTS = [
    integers(3, 40, 7, 7),
    integers(2, 37, 5, 3, last=True),
    integers(4, 64, 9, 9, last=True, dtype=torch.bfloat16),
    integers(2, 5, 33, 70, dtype=torch.float16),
    integers(9, 30, dtype=torch.float64),
    integers(70, 33),
    integers(2, 8, 3),
    integers(6, 24, 5, 5)[:, ::2],
    integers(0, 4, 2, 2),
    integers(1, 1, 1, 1),
]


@pytest.mark.usefixtures("isa", "threads")
@pytest.mark.parametrize("x", LAYOUTS, ids=lambda x: f"{tuple(x.shape)}-{x.dtype}")
def test_the_largest_channels(x):
    for k in {0, 1, x.shape[1] // 2, x.shape[1]}:
        expected = by_hand(sizes_by_hand(x), k)
        assert torch.equal(ops.topk_abs_channels(x, k), expected)
        assert torch.equal(ops.topk_abs_channels(x, k, impl="reference"), expected)


@pytest.mark.usefixtures("isa")
@pytest.mark.parametrize("last", [False, True])
def test_a_channel_with_nan_is_the_largest(last):
    x = integers(2, 6, 4, 4, last=last)
    x[1, 3, 2, 1], x[0, 5, 0, 0] = float("nan"), float("-inf")
    assert ops.topk_abs_channels(x, 2).tolist() == [3, 5]
    assert ops.topk_abs_channels(x, 1).tolist() == [3]  # a tie: the lowest index
    assert ops.topk_abs_channels(x, 2, impl="reference").tolist() == [3, 5]


@pytest.mark.parametrize(
    "x, k, message",
    [
        (torch.zeros(3), 1, "2 dimensions or more, got 1"),
        (torch.zeros(2, 3).int(), 1, "float dtype, got torch.int32"),
        (torch.zeros(2, 3), 4, "0 <= k <= 3, got k=4"),
    ],
)
def test_bad_tensors(x, k, message):
    with pytest.raises(ValueError, match=message):
        ops.topk_abs_channels(x, k)


def test_opcheck():
    torch.library.opcheck(torch.ops.evoprune.topk_abs_channels.default, (torch.randn(5, 7, 3), 4))
    torch.library.opcheck(torch.ops.evoprune.topk_channels.default, (torch.randn(5, 13), 4))
