"""Layer budgets: how many weights each layer keeps, so that all of them together keep an exact number.

Every budget is the same division: a layer gets ``floor + t * weight`` weights but not more than it has, and the one
``t`` is solved for the total. In exact fractions, so that a budget does not depend on the machine::

    budget          floor                  weight
    uniform         0                      size
    erk             0                      sum of the dimensions
    proportional    ceil(floor_kept size)  score

What is left of a weight after rounding down goes to the layers with the largest remainders; ties: the first layer.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from fractions import Fraction

from evoprune_kernels._check import check

Shapes = Mapping[str, Sequence[int]]


def uniform(shapes: Shapes, kept: float) -> dict[str, float]:
    """The same share for every layer.

    ``kept_l = kept``, rounded to whole weights so that the total is ``round(kept * entries)``

    Args:
        shapes: parameter name -> shape.
        kept: share in (0, 1].

    Returns:
        the layer budget: name -> kept share; times the entries a whole number. 1.0 for a layer without entries.

    Raises:
        ValueError: if ``kept`` is out of range.

    Notes:
        A share can be 0 where a layer is smaller than ``1 / kept``. Remainders: the first layer wins a tie.

    Example:
        >>> uniform({"a": (2, 2), "b": (2, 3)}, 0.5)
        {'a': 0.5, 'b': 0.5}
    """
    sizes = _sizes(shapes)
    return _budget(sizes, {name: Fraction(size) for name, size in sizes.items()}, kept)


def erk(shapes: Shapes, kept: float) -> dict[str, float]:
    """Erdos-Renyi-Kernel: layers with few weights for their dimensions keep a larger share.

    ``kept_l = min(1, t * sum(shape_l) / prod(shape_l))``, ``t`` so that the total is ``round(kept * entries)``

    Args:
        shapes: parameter name -> shape, kernel dimensions included.
        kept: share in (0, 1] of all layers together.

    Returns:
        the layer budget: name -> kept share; times the entries a whole number. 1.0 for a layer without entries.

    Raises:
        ValueError: if ``kept`` is out of range.

    Notes:
        A layer that would exceed 1 is dense, and ``t`` is solved again for the others. The RigL code rounds each layer
        by itself; here the total is exact. Remainders: the first layer wins a tie.

    Source:
        Evci et al., "Rigging the Lottery: Making All Tickets Winners", arXiv 1911.11134.

    Example:
        >>> erk({"small": (2, 4), "large": (10, 20)}, 0.25)
        {'small': 1.0, 'large': 0.22}
    """
    weights = {name: Fraction(sum(shape) or 1) for name, shape in shapes.items()}
    return _budget(_sizes(shapes), weights, kept)


def proportional(
    scores: Mapping[str, float], sizes: Mapping[str, int], kept: float, floor_kept: float = 0.0
) -> dict[str, float]:
    """Every layer keeps a floor; the rest is divided in proportion to the scores.

    ``kept_l = min(1, (ceil(floor_kept * size_l) + t * score_l) / size_l)``, total ``round(kept * entries)``

    Args:
        scores: layer (or group) name -> importance of the whole layer, >= 0 and finite.
        sizes: name -> entries.
        kept: share in (0, 1] of all layers together.
        floor_kept: share in [0, 1] that every layer keeps; ECoFLaP's ``1 - p_max``.

    Returns:
        the layer budget: name -> kept share; times the entries a whole number. 1.0 for a layer without entries.

    Raises:
        ValueError: if the names differ, a score is negative or not finite, a share is out of range, or the floors
            alone exceed ``kept``.

    Notes:
        A full layer passes what it cannot take on to the others, by score; when only layers of score 0 have room, they
        share by their room. ECoFLaP rounds every division up and then takes back; here the total is exact.
        Remainders: the first layer wins a tie.

    Source:
        Sung et al., "ECoFLaP: Efficient Coarse-to-Fine Layer-Wise Pruning for Vision-Language Models",
        arXiv 2310.02998.

    Example:
        >>> proportional({"a": 3.0, "b": 1.0}, {"a": 100, "b": 100}, kept=0.5, floor_kept=0.1)
        {'a': 0.7, 'b': 0.3}
    """
    check(
        scores.keys() == sizes.keys(),
        f"expected scores of the layers {sorted(sizes)}, got those of {sorted(scores)}",
    )
    check(0 <= floor_kept <= 1, f"expected 0 <= floor_kept <= 1, got {floor_kept}")
    for name in sizes:
        check(
            math.isfinite(scores[name]) and scores[name] >= 0,
            f"expected a finite score >= 0 of layer {name!r}, got {scores[name]}",
        )
        check(sizes[name] >= 0, f"expected a size >= 0 of layer {name!r}, got {sizes[name]}")
    weights = {name: Fraction(float(scores[name])) for name in sizes}
    # the decimal that is meant: 0.07 of 100 is 7, not a little more
    floor = Fraction(repr(float(floor_kept)))
    floors = {name: math.ceil(floor * size) for name, size in sizes.items()}
    total = _total(sizes, kept)
    check(
        sum(floors.values()) <= total,
        f"floor_kept={floor_kept} keeps {sum(floors.values())} weights, more than the {total} that "
        f"kept={kept} allows",
    )
    return _budget(dict(sizes), weights, kept, floors)


def budget_counts(budget: Mapping[str, float], shapes: Shapes) -> dict[str, int]:
    """Whole weights that each layer of a budget keeps.

    ``count_l = round(kept_l * entries_l)``

    Args:
        budget: parameter name -> kept share.
        shapes: parameter name -> shape, of the same names.

    Raises:
        ValueError: if the names differ or a share is outside 0-1.

    Example:
        >>> budget_counts({"a": 0.5}, {"a": (3, 4)})
        {'a': 6}
    """
    check(
        budget.keys() == shapes.keys(),
        f"expected a budget of the layers {sorted(shapes)}, got one of {sorted(budget)}",
    )
    for name, share in budget.items():
        check(0 <= share <= 1, f"expected a kept share in 0-1 of layer {name!r}, got {share}")
    return {name: round(budget[name] * math.prod(shape)) for name, shape in shapes.items()}


def _sizes(shapes: Shapes) -> dict[str, int]:
    return {name: math.prod(shape) for name, shape in shapes.items()}


def _total(sizes: Mapping[str, int], kept: float) -> int:
    check(0 < kept <= 1, f"expected 0 < kept <= 1, got {kept}")
    return round(kept * sum(sizes.values()))


def _budget(
    sizes: dict[str, int],
    weights: dict[str, Fraction],
    kept: float,
    floors: dict[str, int] | None = None,
) -> dict[str, float]:
    total = _total(sizes, kept)
    floors = floors or dict.fromkeys(sizes, 0)
    quotas = _divide(sizes, weights, floors, total)
    counts = _whole(quotas, total)
    return {name: counts[name] / size if size else 1.0 for name, size in sizes.items()}


def _divide(
    sizes: dict[str, int], weights: dict[str, Fraction], floors: dict[str, int], total: int
) -> dict[str, Fraction]:
    """``min(size, floor + t * weight)`` with the one ``t`` that makes the sum ``total``."""
    room = {name: Fraction(size - floors[name]) for name, size in sizes.items()}
    rest = Fraction(total - sum(floors.values()))
    extra = dict.fromkeys(sizes, Fraction(0))
    sharing = {name for name in sizes if weights[name] > 0}
    while rest > 0:
        if not sharing:  # every layer with a weight is full: by room
            sharing = {name for name in sizes if extra[name] < room[name]}
            weights = room
        t = rest / sum((weights[name] for name in sharing), Fraction(0))
        full = {name for name in sharing if t * weights[name] >= room[name]}
        for name in full or sharing:
            extra[name] = room[name] if full else t * weights[name]
            rest -= extra[name]
        sharing -= full
    return {name: floors[name] + extra[name] for name in sizes}


def _whole(quotas: dict[str, Fraction], total: int) -> dict[str, int]:
    """Largest remainder: whole numbers next to the quotas, of sum ``total``."""
    counts = {name: math.floor(quota) for name, quota in quotas.items()}
    order = sorted(quotas, key=lambda name: counts[name] - quotas[name])  # stable: ties keep order
    for name in order[: total - sum(counts.values())]:
        counts[name] += 1
    return counts
