"""select_nm: literal masks, an independent oracle, every ISA level and thread count, opcheck."""

from __future__ import annotations

import pytest
import torch

from evoprune_kernels import ops
from evoprune_kernels.ops.select_nm.cases import CASES
from evoprune_kernels.ops.select_nm.reference import select_nm_reference


def by_hand(scores: torch.Tensor, n: int, m: int) -> torch.Tensor:
    """The contract, word by word, in Python."""
    mask = torch.zeros(scores.shape, dtype=torch.bool)
    for r, row in enumerate(scores.tolist()):
        for start in range(0, len(row), m):
            group = list(enumerate(row[start : start + m]))
            group.sort(
                key=lambda item: (
                    item[1] != item[1],
                    -item[1] if item[1] == item[1] else 0,
                    item[0],
                )
            )
            for i, _ in group[:n]:
                mask[r, start + i] = True
    return mask


def test_literal():
    scores = torch.tensor([[0.1, 0.9, 0.9, 0.3, 5.0, 5.0, 5.0, 5.0, 1.0]])
    expected = [[0, 1, 1, 0, 1, 1, 0, 0, 1]]
    assert ops.select_nm(scores, 2, 4).int().tolist() == expected


@pytest.mark.parametrize("case", CASES, ids=lambda c: c.name)
def test_kernel_and_reference_match_the_contract(case, isa, threads):
    scores, n, m = case.args()
    expected = by_hand(scores, n, m)
    assert torch.equal(ops.select_nm(scores, n, m, impl="cpu"), expected)
    assert torch.equal(select_nm_reference(scores, n, m), expected)


def test_non_contiguous():
    scores = torch.randn(12, 20).t()
    assert torch.equal(ops.select_nm(scores, 2, 4), by_hand(scores, 2, 4))


@pytest.mark.parametrize("n, m", [(0, 4), (5, 4), (2, 33)])
def test_rejects_bad_pattern(n, m):
    with pytest.raises(ValueError, match=f"n={n}, m={m}"):
        ops.select_nm(torch.zeros(2, 8), n, m)


def test_opcheck():
    torch.library.opcheck(torch.ops.evoprune.select_nm.default, (torch.randn(5, 13), 2, 4))
