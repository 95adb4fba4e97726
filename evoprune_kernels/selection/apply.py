"""One call from the scores of a model to its masks."""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor

from evoprune_kernels import ops
from evoprune_kernels._check import check
from evoprune_kernels.selection.budgets import budget_counts, erk, uniform

#: how a share for the whole model is divided; "global" ranks all layers together
BUDGETS = ("uniform", "erk", "global")


def select_all(
    scores: Mapping[str, Tensor],
    kept: float | Mapping[str, float],
    budget: str = "uniform",
) -> dict[str, Tensor]:
    """Masks of any positions for all layers, with an exact total.

    ``mask_l = top round(kept_l * entries_l) of scores_l``, or with "global" the top of all scores together

    Args:
        scores: parameter name -> scores of any shape and real dtype, higher is kept; compared as float32.
        kept: share in (0, 1] of all layers together, or a layer budget (name -> kept share), which needs no
            ``budget``.
        budget: "uniform", "erk" or "global".

    Returns:
        the mask dict: name -> bool mask of the shape of the scores, in their order.

    Raises:
        ValueError: if ``budget`` is unknown, a share is out of range, or the names of ``kept`` are not those of
            ``scores``.

    Notes:
        ``round(kept * entries)`` weights stay in total. Ties: the lowest flat index wins, counted through the layers
        with "global". NaN ranks below every number.

    Source:
        Han et al. 2015 (uniform), Evci et al. 2020 (erk).

    Example:
        >>> import torch
        >>> scores = {"a": torch.tensor([4.0, 3.0]), "b": torch.tensor([2.0, 1.0])}
        >>> select_all(scores, 0.5)
        {'a': tensor([ True, False]), 'b': tensor([ True, False])}
        >>> select_all(scores, 0.5, "global")
        {'a': tensor([True, True]), 'b': tensor([False, False])}
    """
    check(budget in BUDGETS, f"expected budget in {BUDGETS}, got {budget!r}")
    shapes = {name: tuple(s.shape) for name, s in scores.items()}
    if isinstance(kept, Mapping):
        shares = dict(kept)
    else:
        check(0 < kept <= 1, f"expected 0 < kept <= 1, got {kept}")
        if budget == "global":
            masks = ops.select_topk_global(list(scores.values()), kept)
            return dict(zip(scores, masks, strict=True))
        shares = (erk if budget == "erk" else uniform)(shapes, kept)
    budget_counts(shares, shapes)  # the names and the range, before anything is selected
    return {name: ops.select_topk(s, shares[name]) for name, s in scores.items()}
