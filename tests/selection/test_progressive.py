"""Layer-progressive masks: when each layer's turn comes."""

from __future__ import annotations

import pytest

from evoprune_kernels.selection import progressive_gap, progressive_names


@pytest.mark.parametrize("layers", [1, 2, 3, 7])
@pytest.mark.parametrize("steps", [1, 2, 7, 20, 23])
def test_one_layer_more_at_every_gap(layers, steps):
    names = [f"l{i}" for i in range(layers)]
    gap = max(1, steps // layers)
    assert progressive_gap(layers, steps) == gap
    due = 0
    for step in range(2 * steps + 2):
        if step > 0 and step % gap == 0:
            due = min(due + 1, layers)
        expected = names if step >= steps else names[:due]
        assert progressive_names(names, step, steps) == expected


def test_published_schedule():
    # 10 epochs of 100 batches, 5 layers: a layer every 180 batches, all before the last epoch
    names = list("abcde")
    assert progressive_gap(5, 100 * 9) == 180
    assert progressive_names(names, 179, 900) == []
    assert progressive_names(names, 180, 900) == ["a"]
    assert progressive_names(names, 899, 900) == ["a", "b", "c", "d"]
    assert progressive_names(names, 900, 900) == names


def test_no_names():
    assert progressive_names([], 3, 5) == []


def test_rejects():
    with pytest.raises(ValueError, match=r"once, got \['a'\]"):
        progressive_names(["a", "b", "a"], 0, 5)
    with pytest.raises(ValueError, match="step >= 0, got -1"):
        progressive_names(["a"], -1, 5)
    with pytest.raises(ValueError, match="steps >= 1, got 0"):
        progressive_names(["a"], 0, 0)
    with pytest.raises(ValueError, match="layers >= 1, got 0"):
        progressive_gap(0, 5)
