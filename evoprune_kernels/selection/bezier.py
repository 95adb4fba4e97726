"""Bezier-histogram sampler: random weights go, from the middle of each row's histogram more than from its ends.

weights of a row            share of a bin that is dropped
  #                           a
 ###                         / \\           the curve runs from d (extreme bins) to a (middle bins), is stretched
#####                     __/   \\__        to 0..1, scaled, and cut at 1
min   max                d         d
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from evoprune_kernels._check import check, check_dtype, check_shape
from evoprune_kernels.selection.random import random_keys

#: how the stretched curve is scaled
SCALINGS = ("+", "*")


def bezier_bins(entries: int) -> int:
    """Bins for a row: ``floor(sqrt(entries))``, made even by adding 1."""
    bins = math.isqrt(entries)
    return bins + bins % 2


def bezier_proportions(
    curve: Sequence[float], bins: int, upscale: float, scaling: str = "+"
) -> Tensor:
    """The share of each bin that is dropped.

    ``B(x) = a(1-x)^3 + 3b x(1-x)^2 + 3c x^2(1-x) + d x^3``; ``min(1, stretch(B) + upscale)`` or ``* upscale``

    Args:
        curve: a, b, c, d.
        bins: even, >= 2; x runs from 1 to 0 over the left half and from 0 to 1 over the right half.
        upscale: >= 0.
        scaling: "+" or "*".

    Returns:
        float64 [bins] on the CPU, each 0-1.

    Raises:
        ValueError: if an argument is out of range, or the curve is flat on these bins and cannot be stretched.

    Notes:
        As published, two bins are not symmetric: a half of one point starts at its x, so the left bin is at ``d`` and
        the right one at ``a``. The two middle bins of more are both at ``a``.

    Source:
        "Smart Pruning of Deep Neural Networks Using Curve Fitting and Evolution of Weights", LOD 2022, and the
        authors' code.

    Example:
        >>> bezier_proportions([1, 0.14, 0.14, 0.1], bins=4, upscale=0.5, scaling="*")
        tensor([0.0000, 0.5000, 0.5000, 0.0000], dtype=torch.float64)
    """
    check(scaling in SCALINGS, f"expected scaling in {SCALINGS}, got {scaling!r}")
    check(
        len(curve) == 4 and all(math.isfinite(c) for c in curve),
        f"expected a curve of four finite numbers, got {list(curve)}",
    )
    check(bins >= 2 and bins % 2 == 0, f"expected an even number of bins >= 2, got {bins}")
    check(0 <= upscale < math.inf, f"expected a finite upscale >= 0, got {upscale}")
    a, b, c, d = map(float, curve)
    left = torch.linspace(1, 0, bins // 2, dtype=torch.float64)
    right = torch.linspace(0, 1, bins // 2, dtype=torch.float64)
    x = torch.cat([left, right])
    y = a * (1 - x) ** 3 + 3 * b * x * (1 - x) ** 2 + 3 * c * x**2 * (1 - x) + d * x**3
    low, high = y.min(), y.max()
    check(
        bool(high > low),
        f"expected a curve that is not flat on {bins} bins, got {list(curve)}, which is {float(low)} on all",
    )
    stretched = (y - low) / (high - low)
    return (stretched + upscale if scaling == "+" else stretched * upscale).clamp(max=1.0)


def select_bezier(
    values: Tensor,
    curve: Sequence[float],
    upscale: float,
    *,
    scaling: str = "+",
    old: Tensor | None = None,
    seed: int = 0,
    tensor: int = 0,
    epoch: int = 0,
) -> Tensor:
    """Drop a random subset of each bin of each row's histogram.

    ``in each bin: floor(count * proportion[bin]) random weights go``; ``mask = drawn and old``

    Args:
        values: [rows, ...], the averaged or the current weight; any real dtype.
        curve: a, b, c, d of ``bezier_proportions``.
        upscale: >= 0.
        scaling: "+" or "*".
        old: bool mask of the shape of ``values`` that stays in force, or None.
        seed: of the run.
        tensor: number of the tensor in the model.
        epoch: number of the draw.

    Returns:
        bool mask of the shape of ``values``, True = keep.

    Raises:
        ValueError: if ``values`` has fewer than two dimensions or holds NaN or infinities, shapes differ, or an
            argument of ``bezier_proportions`` or ``random_keys`` is out of range.
        TypeError: if ``old`` is not bool.

    Notes:
        The histogram has ``floor(sqrt(n))`` bins (one more if odd) of equal width between the row's smallest and
        largest SIGNED value; a value on an edge belongs to the bin above, the largest to the last. Bins are found in
        float64. A row of equal values (or of one) is in the right one of the two middle bins, where ``torch.histc``
        counts it. All weights are counted, those that ``old`` prunes as well: so the authors do it. Every subset of a
        bin is alike; the draw depends on (seed, tensor, epoch) and the position alone, not on the device.

    Source:
        "Smart Pruning of Deep Neural Networks Using Curve Fitting and Evolution of Weights", LOD 2022, and the
        authors' code.

    Example:
        >>> import torch
        >>> row = torch.arange(-8.0, 8.0).view(1, 16)
        >>> select_bezier(row, [1, 0.14, 0.14, 0.1], 1.0, scaling="*").int()
        tensor([[1, 1, 1, 1, 0, 0, 0, 0, 0, 0, 0, 0, 1, 1, 1, 1]], dtype=torch.int32)
    """
    check(
        values.dim() >= 2,
        f"expected values of at least 2 dimensions, got {values.dim()} (shape {tuple(values.shape)})",
    )
    if old is not None:
        check_dtype(old, (torch.bool,), "old")
        check_shape(old, tuple(values.shape), "old")
    entries = math.prod(values.shape[1:])
    bins = max(bezier_bins(entries), 2)
    proportions = bezier_proportions(curve, bins, upscale, scaling).to(values.device)
    keys = random_keys(
        (values.shape[0], entries), seed=seed, tensor=tensor, draw=epoch, device=values.device
    )
    if values.numel() == 0:
        return torch.ones_like(values, dtype=torch.bool)
    matrix = values.detach().reshape(values.shape[0], entries).double()
    bad = int((~matrix.isfinite()).sum())
    check(bad == 0, f"expected finite values, got {bad} of {values.numel()} that are not")
    mask = ~_drop(_bin_of(matrix, bins), keys, proportions).view(values.shape)
    return mask if old is None else mask & old


def _bin_of(matrix: Tensor, bins: int) -> Tensor:
    """int64 [rows, entries]: the bin of each value in its row's histogram."""
    low, high = matrix.amin(1, keepdim=True), matrix.amax(1, keepdim=True)
    width = high - low
    where = ((matrix - low) * bins / width).floor()
    where = torch.where(width > 0, where, bins // 2)
    return where.clamp_(0, bins - 1).long()


def _drop(bin_of: Tensor, keys: Tensor, proportions: Tensor) -> Tensor:
    """bool [rows, entries]: the lowest keys of each (row, bin), as many as its proportion asks for."""
    rows, entries = bin_of.shape
    bins = proportions.numel()
    # by bin, and by key inside a bin
    order = keys.argsort(dim=1, stable=True)
    order = order.gather(1, bin_of.gather(1, order).argsort(dim=1, stable=True))
    ordered = bin_of.gather(1, order)
    edges = torch.arange(bins + 1, device=bin_of.device).expand(rows, bins + 1).contiguous()
    start = torch.searchsorted(ordered, edges)
    count = ((start[:, 1:] - start[:, :-1]).double() * proportions).floor().long()
    rank = torch.arange(entries, device=bin_of.device) - start.gather(1, ordered)
    drop = torch.zeros_like(bin_of, dtype=torch.bool)
    return drop.scatter_(1, order, rank < count.gather(1, ordered))
