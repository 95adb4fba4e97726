"""Random masks and scores: exact counts, a Python Philox, and that every choice is alike."""

from __future__ import annotations

import pytest
import torch

from evoprune_kernels.selection import random_mask, random_scores
from evoprune_kernels.selection.random import _SELECTION, random_keys

WORD = 0xFFFFFFFF


def philox_by_hand(counter: list[int], seed: int) -> list[int]:
    """Philox 4x32-10 of the paper, in Python integers."""
    c, key = list(counter), [seed & WORD, seed >> 32 & WORD]
    for _ in range(10):
        p, q = c[0] * 0xD2511F53, c[2] * 0xCD9E8D57
        c = [(q >> 32) ^ c[1] ^ key[0], q & WORD, (p >> 32) ^ c[3] ^ key[1], p & WORD]
        key = [(key[0] + 0x9E3779B9) & WORD, (key[1] + 0xBB67AE85) & WORD]
    return c


@pytest.mark.parametrize("seed, tensor, draw", [(0, 0, 0), (-1, 3, 7), (2**40 + 5, 2**32 - 1, 9)])
def test_keys(seed, tensor, draw):
    keys = random_keys((3, 5), seed=seed, tensor=tensor, draw=draw)
    expected = []
    for i in range(15):
        first, second, *_ = philox_by_hand([i, 0, tensor, draw], seed ^ _SELECTION)
        expected.append((first << 31) + second // 2)
    assert keys.flatten().tolist() == expected
    scores = random_scores((3, 5), seed=seed, tensor=tensor, draw=draw)
    assert scores.dtype == torch.float32
    assert scores.flatten().tolist() == [(key >> 39) / 2**24 for key in expected]


@pytest.mark.parametrize("shape", [(), (1,), (7,), (5, 3), (4, 3, 2), (0, 4)])
@pytest.mark.parametrize("kept", [0.0, 0.1, 0.5, 1.0])
def test_exact_count_of_the_lowest_keys(shape, kept):
    mask = random_mask(shape, kept, seed=3)
    assert mask.shape == shape and mask.dtype == torch.bool
    keys = random_keys(shape, seed=3).flatten().tolist()
    lowest = sorted(range(len(keys)), key=lambda i: keys[i])[: round(kept * len(keys))]
    assert mask.flatten().nonzero().flatten().tolist() == sorted(lowest)


def test_depends_on_its_numbers_alone():
    mask = random_mask((40, 50), 0.5, seed=1, tensor=2, draw=3)
    state = torch.get_rng_state()
    torch.rand(5)
    again = torch.get_rng_state()
    assert torch.equal(mask, random_mask((40, 50), 0.5, seed=1, tensor=2, draw=3))
    assert torch.equal(again, torch.get_rng_state()) and not torch.equal(again, state)
    for other in ((2, 2, 3), (1, 3, 3), (1, 2, 4)):
        different = random_mask((40, 50), 0.5, seed=other[0], tensor=other[1], draw=other[2])
        assert 800 < int((mask ^ different).sum()) < 1200


def test_every_position_is_kept_alike():
    draws = torch.stack([random_mask((6, 5), 0.3, seed=0, draw=d) for d in range(2000)])
    share = draws.double().mean(0)
    # 0.3 with a deviation of 0.0102: five of them
    assert (share - 0.3).abs().max() < 0.052
    assert draws.sum((1, 2)).unique().tolist() == [9]


def test_less_is_contained_in_more():
    few, many = (random_mask((9, 9), kept, seed=5) for kept in (0.2, 0.6))
    assert bool((many | ~few).all())


def test_rejects():
    for kept in (-0.1, 1.1, float("nan")):
        with pytest.raises(ValueError, match=f"kept <= 1, got {kept}"):
            random_mask((2,), kept, seed=0)
    with pytest.raises(ValueError, match="tensor < 2\\^32, got -1"):
        random_mask((2,), 0.5, seed=0, tensor=-1)
    with pytest.raises(ValueError, match=f"draw < 2\\^32, got {2**32}"):
        random_scores((2,), seed=0, draw=2**32)
