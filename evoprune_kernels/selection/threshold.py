"""Threshold by spread: a weight stays if it is large against the standard deviation of its tensor.

The published variants, ``w`` the current weight and ``avg`` its running average over training (rule "evolution"):

    variant                   ranked   spread_of   absolute   nonzero   inclusive
    magnitude (baseline)      w        w           True       False     False
    evolution 2022            w        avg         False      False     False
    later rounds of 2023      w        w           True       True      False
    evolution 2024 (LLM)      avg      avg         True       False     True
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from evoprune_kernels._check import check, check_shape


def spread_ratio(
    ranked: Tensor,
    spread_of: Tensor,
    *,
    absolute: bool = False,
    nonzero: bool = False,
    inclusive: bool = False,
) -> Tensor:
    """How many standard deviations of the tensor a weight is away from zero.

    ``ratio = |ranked| / std(spread_of)``, or ``std(|spread_of|)`` with ``absolute``

    Args:
        ranked: what is compared, any shape and real dtype: the current or the averaged weight.
        spread_of: what the deviation is taken of, the shape of ``ranked``.
        absolute: the deviation of ``|spread_of|``, for a normal tensor 0.603 of the signed one.
        nonzero: leave zeros (pruned weights) out of the deviation.
        inclusive: where the deviation is 0, zeros are inf as well.

    Returns:
        float64, the shape of ``ranked``; NaN where ``ranked`` is NaN.

    Raises:
        ValueError: if the shapes differ or ``spread_of`` holds NaN or an infinity.

    Notes:
        The deviation is the unbiased one (``n - 1``, the default of ``torch.std``), in float64; that of fewer than two
        values is 0. Where it is 0 the ratio is inf, as ``|ranked| > rate * 0`` asks for, and 0 for zeros, which only
        ``>=`` keeps. A score: ranked by ``ops.select_topk_global`` it gives the allocation of a common rate with an
        exact count.

    Source:
        "Smart Pruning of Deep Neural Networks Using Curve Fitting and Evolution of Weights", LOD 2022, and the
        authors' code.

    Example:
        >>> import torch
        >>> spread_ratio(torch.tensor([3.0, -1.0, 0.0]), torch.tensor([-1.0, 0.0, 1.0]))
        tensor([3., 1., 0.], dtype=torch.float64)
    """
    check_shape(spread_of, tuple(ranked.shape), "spread_of")
    values = spread_of.detach().double()
    bad = int((~values.isfinite()).sum())
    check(
        bad == 0, f"expected finite values in spread_of, got {bad} of {values.numel()} that are not"
    )
    values = values.abs() if absolute else values
    if nonzero:
        values = values[values != 0]
    size = ranked.detach().double().abs()
    # a constant tensor is 0 by definition: its mean may be rounded
    if values.numel() < 2 or bool(values.max() == values.min()):
        keeps = ~size.isnan() if inclusive else size > 0
        return size.masked_fill(keeps, math.inf)
    return size / values.std()


def select_threshold(
    ranked: Tensor,
    spread_of: Tensor,
    rate: float,
    *,
    absolute: bool = False,
    nonzero: bool = False,
    inclusive: bool = False,
) -> Tensor:
    """Keep what is larger than ``rate`` standard deviations.

    ``mask = |ranked| > rate * std(spread_of)``, or ``>=`` with ``inclusive``

    Args:
        ranked: what is compared, any shape and real dtype: the current or the averaged weight.
        spread_of: what the deviation is taken of, the shape of ``ranked``.
        rate: threshold in standard deviations, >= 0.
        absolute: the deviation of ``|spread_of|``.
        nonzero: leave zeros (pruned weights) out of the deviation.
        inclusive: a weight on the threshold stays.

    Returns:
        bool mask of the shape of ``ranked``, True = keep.

    Raises:
        ValueError: if the rate is negative or NaN, the shapes differ, or ``spread_of`` is not finite.

    Notes:
        Decided by ``spread_ratio``, so equal weights share their fate and the order of the entries does not matter.
        NaN in ``ranked`` is pruned. The threshold of a tensor without spread (constant, one entry) is 0.

    Source:
        2022: "Smart Pruning of Deep Neural Networks Using Curve Fitting and Evolution of Weights", LOD 2022; 2024:
        "Systematic Weight Evaluation for Pruning Large Language Models", arXiv 2502.17071; the authors' code.

    Example:
        >>> import torch
        >>> w = torch.tensor([3.0, -1.0, 0.5, 0.0])
        >>> select_threshold(w, w, 0.5)
        tensor([ True,  True, False, False])
    """
    check(rate >= 0, f"expected rate >= 0, got {rate}")
    ratio = spread_ratio(ranked, spread_of, absolute=absolute, nonzero=nonzero, inclusive=inclusive)
    return ratio >= rate if inclusive else ratio > rate


def rate_for(
    ranked: Sequence[Tensor],
    spread_of: Sequence[Tensor],
    kept: float,
    *,
    absolute: bool = False,
    nonzero: bool = False,
    inclusive: bool = False,
) -> float:
    """The rate at which ``select_threshold`` keeps the share ``kept`` of all tensors together.

    ``rate = between the k-th highest ratio and the next lower one, k = round(kept * entries)``

    Args:
        ranked: tensors as of ``select_threshold``, on one device.
        spread_of: one for each.
        kept: share in (0, 1].
        absolute: as of ``select_threshold``.
        nonzero: as of ``select_threshold``.
        inclusive: as of ``select_threshold``.

    Returns:
        the rate, >= 0: exactly ``max(k, 1)`` entries are kept unless the k-th is tied; then all that are tied with it.

    Raises:
        ValueError: if ``kept`` is out of range, the lists differ in length, or no entry is a number.

    Notes:
        Exact in one ranking; the authors scan the rates 0.1, 0.2, ... 2.4 on ``std(|w|)`` until the pruned share of
        ALL parameters, biases included, is reached. Zeros never pass a rate that is not inclusive: where fewer than k
        entries are nonzero, the rate is 0 and keeps those. The answer lies halfway between two ratios of different
        entries, so it does not hang on the last bit.

    Source:
        ``get_prune_rate_for_compression`` of the authors' 2023 library, which approximates it.

    Example:
        >>> import torch
        >>> w = torch.tensor([3.0, -1.0, 0.5, 0.0])
        >>> select_threshold(w, w, rate_for([w], [w], 0.75))
        tensor([ True,  True,  True, False])
    """
    check(0 < kept <= 1, f"expected 0 < kept <= 1, got {kept}")
    check(
        len(ranked) == len(spread_of),
        f"expected as many tensors to take the spread of as are ranked ({len(ranked)}), got {len(spread_of)}",
    )
    ratios = [
        spread_ratio(r, s, absolute=absolute, nonzero=nonzero, inclusive=inclusive).reshape(-1)
        for r, s in zip(ranked, spread_of, strict=True)
    ]
    pooled = torch.cat(ratios) if ratios else torch.empty(0)
    numbers = pooled[~pooled.isnan()]
    check(numbers.numel() > 0, f"expected entries that are numbers, got {pooled.numel()} entries")
    count = min(max(round(kept * pooled.numel()), 1), numbers.numel())
    high = numbers.kthvalue(numbers.numel() - count + 1).values
    lower = numbers[numbers < high]
    low = float(lower.max()) if lower.numel() else 0.0
    return _between(low, float(high), inclusive)


def _between(low: float, high: float, inclusive: bool) -> float:
    """A rate that keeps a ratio ``high`` and prunes a ratio ``low``, as far from both as can be."""
    middle = low + (high - low) / 2
    if low < middle < high and math.isfinite(middle):
        return middle
    if not inclusive:
        return low
    return high if math.isfinite(high) else math.nextafter(low, math.inf)
