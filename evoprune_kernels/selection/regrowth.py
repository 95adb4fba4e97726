"""Dynamic sparse training: drop the smallest weights of a mask, grow as many elsewhere.

method            growth_scores                                     published as
SET               random_scores(...)                                arXiv 1707.04780
RigL              |gradient of the dense weight|                    arXiv 1911.11134
momentum (SNFS)   |running average of the gradient|, Adam's first   arXiv 1907.04840
"""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor

from evoprune_kernels import ops
from evoprune_kernels._check import check, check_dtype, check_shape


class Regrowth(NamedTuple):
    """What ``drop_and_grow`` changed.

    Attributes:
        mask: the new mask; it keeps as many as the old one.
        grown: kept now and not before: set weight, moments and averages to 0 there.
        dropped: kept before and not now.

    Example:
        >>> Regrowth._fields
        ('mask', 'grown', 'dropped')
    """

    mask: Tensor
    grown: Tensor
    dropped: Tensor


def drop_and_grow(
    weight: Tensor,
    mask: Tensor,
    growth_scores: Tensor,
    fraction: float,
    *,
    regrow_dropped: bool = True,
) -> Regrowth:
    """Exchange a fraction of the kept weights.

    ``drop the floor(fraction * kept) smallest |weight| of the mask, then grow as many highest growth_scores outside``

    Args:
        weight: any shape, any real dtype.
        mask: bool, the shape of ``weight``, True = keep.
        growth_scores: the shape of ``weight``; compared as float32, higher grows. Absolute values are the caller's.
        fraction: of the kept weights that is dropped, 0-1.
        regrow_dropped: whether a weight that was just dropped may be grown back; it then keeps its value and is in
            neither ``grown`` nor ``dropped``. True is what the authors' code does. With False, at most as many are
            dropped as there were outside.

    Returns:
        the new mask, what was grown and what was dropped: three new bool tensors.

    Raises:
        ValueError: if the shapes differ or ``fraction`` is outside 0-1 or NaN.
        TypeError: if the mask is not bool.

    Notes:
        Exact and deterministic. Ties: the lowest flat index stays, and the lowest grows; the authors add noise of
        1e-5 to ``|weight|`` instead. NaN in ``weight`` is dropped first, NaN in ``growth_scores`` grows last.

    Source:
        Mocanu et al. 2018 (SET), Evci et al., "Rigging the Lottery", arXiv 1911.11134, and its code; Dettmers and
        Zettlemoyer, "Sparse Networks from Scratch", arXiv 1907.04840.

    Example:
        >>> import torch
        >>> weight, mask = torch.tensor([3.0, 0.1, 0.0, 0.0]), torch.tensor([True, True, False, False])
        >>> drop_and_grow(weight, mask, torch.tensor([9.0, 0.0, 1.0, 2.0]), fraction=0.5).mask
        tensor([ True, False, False,  True])
    """
    check_dtype(mask, (torch.bool,), "mask")
    check_shape(mask, tuple(weight.shape), "mask")
    check_shape(growth_scores, tuple(weight.shape), "growth_scores")
    check(0 <= fraction <= 1, f"expected 0 <= fraction <= 1, got {fraction}")
    old = mask.reshape(-1)
    active, inactive = old.nonzero().squeeze(1), (~old).nonzero().squeeze(1)
    count = math.floor(fraction * active.numel())
    if not regrow_dropped:
        count = min(count, inactive.numel())
    size = weight.detach().reshape(-1)[active].float().abs()
    stays = _highest(size, active.numel() - count)
    new = torch.zeros_like(old)
    new[active[stays]] = True
    outside = (~new).nonzero().squeeze(1) if regrow_dropped else inactive
    scores = growth_scores.detach().reshape(-1)[outside]
    new[outside[_highest(scores, count)]] = True
    return Regrowth(*(m.view(mask.shape) for m in (new, new & ~old, old & ~new)))


def _highest(scores: Tensor, count: int) -> Tensor:
    """bool mask of the ``count`` highest of a vector; ties: the lowest index wins, NaN is lowest."""
    return ops.select_topk(scores, count / scores.numel() if scores.numel() else 0.0)


def cosine_fraction(t: int, end: int, start_fraction: float) -> float:
    """The share that is exchanged at step ``t``: from ``start_fraction`` down to 0 along half a cosine.

    ``start_fraction / 2 * (1 + cos(pi * t / end))``, 0 from ``end`` on

    Args:
        t: step, >= 0.
        end: last step at which the mask changes, >= 1.
        start_fraction: share at step 0, 0-1; RigL: 0.3.

    Raises:
        ValueError: if an argument is out of range.

    Source:
        Dettmers and Zettlemoyer, arXiv 1907.04840; Evci et al., arXiv 1911.11134.

    Example:
        >>> [round(cosine_fraction(t, 100, 0.3), 3) for t in (0, 50, 100, 150)]
        [0.3, 0.15, 0.0, 0.0]
    """
    check(t >= 0, f"expected t >= 0, got {t}")
    check(end >= 1, f"expected end >= 1, got {end}")
    check(0 <= start_fraction <= 1, f"expected 0 <= start_fraction <= 1, got {start_fraction}")
    if t >= end:
        return 0.0
    return start_fraction / 2 * (1 + math.cos(math.pi * t / end))
