"""Wanda: a weight matters as much as its size times the norm of the input that it meets."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from evoprune_kernels import ops
from evoprune_kernels._check import check, check_dim, check_shape
from evoprune_kernels.formats import NM
from evoprune_kernels.selection._layers import Target, check_weight, choose_targets, find_layers
from evoprune_kernels.selection.calibration import Forward, sum_inputs

#: what a share is compared within
COMPARED = ("row", "tensor")


def wanda_scores(weight: Tensor, squares: Tensor) -> Tensor:
    """The Wanda score of every weight.

    ``scores[i, j] = |weight[i, j]| * sqrt(squares[j])``

    Args:
        weight: [N, K], any float dtype.
        squares: [K], the sum of x_j^2 over the samples (``InputSums.squares``).

    Returns:
        float32 [N, K].

    Raises:
        ValueError: if the shapes do not fit.

    Source:
        Sun et al., "A Simple and Effective Pruning Approach for Large Language Models", arXiv 2306.11695.

    Example:
        >>> import torch
        >>> from evoprune_kernels.selection import wanda_scores
        >>> wanda_scores(torch.tensor([[-3.0, 1.0]]), torch.tensor([1.0, 16.0]))
        tensor([[3., 4.]])
    """
    check_dim(weight, 2, "weight")
    check_shape(squares, (weight.shape[1],), "squares")
    return weight.detach().float().abs() * squares.sqrt().float()


def wanda_masks(
    model: nn.Module,
    batches: Iterable[Any],
    *,
    kept: float | Mapping[str, float] | None = None,
    pattern: str | NM | None = None,
    compare: str = "row",
    forward: Forward | None = None,
    exclude: Iterable[str] = (),
) -> dict[str, Tensor]:
    """The masks that Wanda chooses; the model is not changed.

    ``mask[i, j] = rank of |w_ij| * ||x_j|| within row i < round(kept * K)``

    Args:
        model: see ``calibrate``.
        batches: calibration data, read once; see ``calibrate``.
        kept: share of the weights that is kept, in (0, 1]; or a share for each weight name, and the layers that are
            not named stay dense.
        pattern: ``"n:m"`` instead of ``kept``: the n best of every m consecutive inputs of an output.
        compare: ``"row"``: the weights of one output compete, and every output keeps ``round(kept * K)``; ``"tensor"``:
            those of the layer do, which keeps ``round(kept * N * K)``. An n:m pattern does not use it.
        forward: ``forward(model, batch)`` for batches that are neither tensors nor mappings.
        exclude: names of modules or parameters that stay dense (the output head, as a rule); wildcards are allowed.

    Returns:
        weight name -> bool mask in the weight's shape, True = keep: what ``ek.convert(masks=...)`` takes.

    Raises:
        ValueError: as ``calibrate``; unless exactly one of ``kept`` and ``pattern`` is given; for NaN in a weight.

    Notes:
        Scores are float32. Ties: the lowest input wins. Half a weight rounds to even, as ``round`` does.

    Source:
        Sun et al., "A Simple and Effective Pruning Approach for Large Language Models", arXiv 2306.11695.

    Example:
        >>> import torch
        >>> from evoprune_kernels.selection import wanda_masks
        >>> model = torch.nn.Sequential(torch.nn.Linear(4, 1))
        >>> with torch.no_grad():
        ...     _ = model[0].weight.copy_(torch.tensor([[1.0, -2.0, 3.0, 4.0]]))
        >>> wanda_masks(model, [torch.tensor([[9.0, 1.0, 1.0, 1.0]])], pattern="2:4")
        {'0.weight': tensor([[ True, False, False,  True]])}
    """
    check(compare in COMPARED, f"expected compare in {COMPARED}, got {compare!r}")
    layers = find_layers(model, exclude)
    targets = choose_targets(layers, kept, pattern)
    chosen = [layers[name] for name in targets]
    for layer in chosen:
        check_weight(layer)
    sums = sum_inputs(model, batches, chosen, gram=False, dtype=torch.float32, forward=forward)
    masks = {}
    for layer in chosen:
        scores = wanda_scores(layer.matrix(), sums[layer.name].squares)
        masks[layer.name] = layer.shaped(_select(scores, targets[layer.name], compare)).contiguous()
    return masks


def _select(scores: Tensor, target: Target, compare: str) -> Tensor:
    if isinstance(target, NM):
        return ops.select_nm(scores, target.n, target.m, shared=target.shared)
    if compare == "tensor":
        return ops.select_topk(scores, target)
    return keep_highest_of_rows(scores, round(target * scores.shape[1]))


def keep_highest_of_rows(scores: Tensor, count: int) -> Tensor:
    """bool mask of the ``count`` highest entries of every row; ties: the lowest column wins.

    Example:
        >>> import torch
        >>> keep_highest_of_rows(torch.tensor([[1.0, 2.0, 2.0], [5.0, 5.0, 5.0]]), 1).int()
        tensor([[0, 1, 0],
                [1, 0, 0]], dtype=torch.int32)
    """
    order = scores.sort(dim=1, descending=True, stable=True).indices[:, :count]
    return torch.zeros_like(scores, dtype=torch.bool).scatter_(1, order, True)
