"""Layer budgets: hand-computed cases, an iterative oracle, exact totals."""

from __future__ import annotations

import math
import random

import pytest

from evoprune_kernels.selection import budget_counts, erk, proportional, uniform

SHAPES = {
    "conv": (8, 3, 5, 5),
    "conv2": (16, 8, 5, 5),
    "fc1": (120, 400),
    "fc2": (84, 120),
    "head": (10, 84),
    "bias": (7,),
}


def random_shapes(rng: random.Random) -> dict[str, tuple[int, ...]]:
    dims = [rng.randint(1, 4) for _ in range(rng.randint(1, 7))]
    return {f"l{i}": tuple(rng.randint(1, 9) for _ in range(d)) for i, d in enumerate(dims)}


def erk_by_iteration(shapes, kept) -> dict[str, float]:
    """The procedure of the paper: the densest layer is made dense, the factor is solved again."""
    sizes = {name: math.prod(shape) for name, shape in shapes.items()}
    target, dense = round(kept * sum(sizes.values())), set()
    while len(dense) < len(shapes):
        rest = [name for name in shapes if name not in dense]
        factor = (target - sum(sizes[name] for name in dense)) / sum(sum(shapes[n]) for n in rest)
        shares = {name: factor * sum(shapes[name]) / sizes[name] for name in rest}
        top = max(shares.values())
        if top <= 1:
            return {name: 1.0 if name in dense else shares[name] for name in shapes}
        dense |= {name for name in rest if shares[name] == top}
    return dict.fromkeys(shapes, 1.0)


def proportional_by_bisection(scores, sizes, floors, target) -> dict[str, float]:
    """Counts ``min(size, floor + t * score)`` with ``t`` found by halving."""

    def counts(t):
        return {n: min(sizes[n], floors[n] + t * scores[n]) for n in sizes}

    low, high = 0.0, 1e9
    for _ in range(200):
        middle = (low + high) / 2
        low, high = (middle, high) if sum(counts(middle).values()) < target else (low, middle)
    return counts(high)


def assert_exact(budget, shapes, kept):
    counts = budget_counts(budget, shapes)
    assert list(budget) == list(shapes)
    assert sum(counts.values()) == round(kept * sum(math.prod(s) for s in shapes.values()))
    for name, shape in shapes.items():
        assert 0 <= counts[name] <= math.prod(shape)
        assert budget[name] * math.prod(shape) == pytest.approx(counts[name], abs=1e-6)
    return counts


def test_uniform_by_hand():
    # 1.5 + 0.5 + 1 -> 3: the first of the two halves gets the weight
    assert uniform({"a": (3,), "b": (1,), "c": (2,)}, 0.5) == {"a": 2 / 3, "b": 0.0, "c": 0.5}


def test_erk_by_hand():
    # 52 of 208 over sums of dimensions 6 : 30 would be 8.67 and 43.33, but small has 8: 44 are left
    assert erk({"small": (2, 4), "large": (10, 20)}, 0.25) == {"small": 1.0, "large": 0.22}
    # no layer is full: 20 of 100 over sums of dimensions 10 : 15 : 11 are 5.56, 8.33 and 6.11
    budget = erk({"a": (5, 5), "b": (5, 10), "c": (5, 5, 1)}, 0.2)
    assert budget == {"a": 6 / 25, "b": 8 / 50, "c": 6 / 25}


def test_erk_of_lenet_matches_the_procedure():
    assert erk(SHAPES, 0.1)["bias"] == 1.0
    expected = erk_by_iteration(SHAPES, 0.1)
    for name, share in erk(SHAPES, 0.1).items():
        assert abs(share - expected[name]) * math.prod(SHAPES[name]) < 1


@pytest.mark.parametrize("seed", range(60))
def test_uniform_and_erk_against_the_procedures(seed):
    rng = random.Random(seed)
    shapes = random_shapes(rng)
    kept = rng.choice([0.01, 0.1, 0.33, 0.5, 0.9, 1.0])
    counts = assert_exact(uniform(shapes, kept), shapes, kept)
    total = sum(math.prod(s) for s in shapes.values())
    for name, shape in shapes.items():
        assert abs(counts[name] - round(kept * total) * math.prod(shape) / total) < 1
    counts = assert_exact(erk(shapes, kept), shapes, kept)
    expected = erk_by_iteration(shapes, kept)
    for name, shape in shapes.items():
        assert abs(counts[name] - expected[name] * math.prod(shape)) < 1 + 1e-9


@pytest.mark.parametrize("seed", range(60))
def test_proportional_against_bisection(seed):
    rng = random.Random(seed)
    sizes = {f"l{i}": rng.randint(1, 60) for i in range(rng.randint(1, 6))}
    scores = {name: rng.random() ** 3 + 1e-3 for name in sizes}
    kept, floor_kept = rng.choice([(0.5, 0.1), (0.9, 0.2), (1.0, 0.0), (0.7, 0.0)])
    floors = {name: math.ceil(floor_kept * n - 1e-9) for name, n in sizes.items()}
    target = round(kept * sum(sizes.values()))
    if sum(floors.values()) > target:
        with pytest.raises(ValueError, match="floor_kept"):
            proportional(scores, sizes, kept, floor_kept)
        return
    budget = proportional(scores, sizes, kept, floor_kept)
    counts = assert_exact(budget, {name: (n,) for name, n in sizes.items()}, kept)
    expected = proportional_by_bisection(scores, sizes, floors, target)
    for name in sizes:
        assert counts[name] >= floors[name]
        assert abs(counts[name] - expected[name]) < 1 + 1e-6


def test_proportional_by_hand():
    sizes = {"a": 10, "b": 100, "c": 100}
    # floors 1 + 10 + 10; 84 left 2:1:1 -> a takes 9 of its 42 and passes 33 on
    budget = proportional({"a": 2.0, "b": 1.0, "c": 1.0}, sizes, kept=0.5, floor_kept=0.1)
    assert budget == {"a": 1.0, "b": 0.48, "c": 0.47}


def test_proportional_when_only_unimportant_layers_have_room():
    budget = proportional({"a": 1.0, "b": 0.0, "c": 0.0}, {"a": 10, "b": 30, "c": 10}, 0.6)
    assert budget == {"a": 1.0, "b": 0.5, "c": 0.5}
    assert proportional({"a": 0.0, "b": 0.0}, {"a": 4, "b": 4}, 0.5) == {"a": 0.5, "b": 0.5}


def test_the_floor_is_the_decimal_that_is_written():
    assert 0.07 * 100 > 7  # the float product would ask for 8
    budget = proportional({"a": 0.0, "b": 1.0}, {"a": 100, "b": 100}, 0.5, floor_kept=0.07)
    assert budget["a"] == 0.07


def test_ties_go_to_the_first_layer():
    shapes = {f"l{i}": (3,) for i in range(4)}
    assert budget_counts(uniform(shapes, 0.5), shapes) == {"l0": 2, "l1": 2, "l2": 1, "l3": 1}


def test_empty_layers_and_no_layers():
    assert uniform({"a": (0, 3), "b": (2, 2)}, 0.5) == {"a": 1.0, "b": 0.5}
    assert erk({"a": (0, 3), "b": (2, 2), "scalar": ()}, 1.0) == {"a": 1.0, "b": 1.0, "scalar": 1.0}
    assert uniform({}, 0.5) == erk({}, 0.5) == proportional({}, {}, 0.5) == {}


def test_rejects():
    for kept in (0.0, -0.5, 1.5, float("nan")):
        for budget in (uniform, erk):
            with pytest.raises(ValueError, match=f"expected 0 < kept <= 1, got {kept}"):
                budget(SHAPES, kept)
    with pytest.raises(ValueError, match=r"\['b'\], got those of \['a'\]"):
        proportional({"a": 1.0}, {"b": 1}, 0.5)
    for score in (-1.0, float("nan"), float("inf")):
        with pytest.raises(ValueError, match=f"layer 'a', got {score}"):
            proportional({"a": score}, {"a": 4}, 0.5)
    with pytest.raises(ValueError, match=r"keeps 3 weights, more than the 2 that kept=0.5 allows"):
        proportional({"a": 1.0, "b": 1.0, "c": 1.0}, {"a": 1, "b": 1, "c": 3}, 0.5, 0.3)
    with pytest.raises(ValueError, match=r"floor_kept <= 1, got 1\.5"):
        proportional({"a": 1.0}, {"a": 4}, 0.5, 1.5)
    with pytest.raises(ValueError, match=r"layers \['a'\], got one of \['b'\]"):
        budget_counts({"b": 0.5}, {"a": (2,)})
    with pytest.raises(ValueError, match=r"layer 'a', got 1\.5"):
        budget_counts({"a": 1.5}, {"a": (2,)})
