"""Scores -> masks for a configuration: the patterns, the ramp of n:m, layer budgets, growth, sharded parameters."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from evoprune_kernels import ops
from evoprune_kernels._check import check
from evoprune_kernels.formats.base import NM, Block, Channel
from evoprune_kernels.formats.nm import repeat_rows
from evoprune_kernels.ops.select_nm import sum_strips
from evoprune_kernels.optim._layout import is_distributed
from evoprune_kernels.optim.config import PruneConfig
from evoprune_kernels.selection import Regrowth, drop_and_grow, erk, random_mask, random_scores


def as_matrix(tensor: Tensor) -> Tensor:
    """``[out, everything else]``: how a weight of three or more dimensions is seen by a pattern."""
    return (
        tensor.reshape(tensor.shape[0], -1)
        if tensor.numel()
        else tensor.reshape(tensor.shape[0], 0)
    )


def check_fits(config: PruneConfig, shape: Sequence[int], name: str) -> None:
    """``ValueError`` naming ``name`` if no weight of this shape can be removed under the pattern.

    Example:
        >>> check_fits(PruneConfig("2:4"), (8, 2), "head.weight")
        Traceback (most recent call last):
        ValueError: head.weight of shape (8, 2) cannot be pruned to '2:4': it has 2 columns, and 2 of 4 are kept
    """
    rows, columns = shape[0], math.prod(shape[1:])
    if config.transposed:
        rows, columns = columns, rows
    pattern = config.parsed
    if rows * columns == 0 or config.density == 1.0:
        return
    reason = ""
    if isinstance(pattern, NM) and columns <= pattern.n:
        reason = f"it has {columns} columns, and {pattern.n} of {pattern.m} are kept"
    elif isinstance(pattern, Block) and rows <= pattern.rows and columns <= pattern.columns:
        reason = "it is a single block"
    elif isinstance(pattern, Channel) and rows == 1:
        reason = "it is a single channel"
    check(
        not reason,
        f"{name} of shape {tuple(shape)} cannot be pruned to {config.pattern!r}: {reason}",
    )


def select(config: PruneConfig, scores: Tensor, kept: float) -> Tensor:
    """The mask of one weight.

    Args:
        config: pattern and final density.
        scores: [rows, columns] float32, higher is kept.
        kept: the share to keep now, between the final density and 1.

    Returns:
        bool mask [rows, columns].
    """
    pattern = config.parsed
    if isinstance(pattern, NM):
        strips = sum_strips(scores, pattern.shared)
        mask = select_nm_ramp(strips, pattern.n, pattern.m, kept)
        return repeat_rows(mask, pattern.shared, scores.shape[0])
    if isinstance(pattern, Block):
        return ops.select_block(scores, pattern.rows, pattern.columns, kept)
    if isinstance(pattern, Channel):
        return ops.select_block(scores, 1, max(scores.shape[1], 1), kept)
    return ops.select_topk(scores, kept)


def select_nm_ramp(scores: Tensor, n: int, m: int, kept: float) -> Tensor:
    """n:m in the groups that lose least by it; dense in the others, so that the share ``kept`` remains.

    Args:
        scores: [rows, columns] float32, higher is kept.
        n: kept per group.
        m: group size.
        kept: the share to keep, from n/m (every group is pruned) to 1 (none is).

    Notes:
        Groups are ranked by the sum of the scores that they would lose; ties: the lowest group stays dense.

    Example:
        >>> import torch
        >>> scores = torch.tensor([[9.0, 8.0, 7.0, 6.0, 9.0, 8.0, 1.0, 1.0]])
        >>> select_nm_ramp(scores, 2, 4, 0.75).int()
        tensor([[1, 1, 1, 1, 1, 1, 0, 0]], dtype=torch.int32)
    """
    mask = ops.select_nm(scores, n, m)
    dense_share = (kept - n / m) / (1 - n / m) if n < m else 0.0
    if dense_share <= 0.0 or scores.numel() == 0:
        return mask
    rows, columns = scores.shape
    groups = -(-columns // m)
    lost = torch.nn.functional.pad(scores.masked_fill(mask, 0.0), (0, groups * m - columns))
    dense = ops.select_topk(lost.view(rows, groups, m).sum(-1), min(dense_share, 1.0))
    return mask | dense.repeat_interleave(m, dim=1)[:, :columns]


def select_group(config: PruneConfig, scores: list[Tensor], kept: float) -> list[Tensor]:
    """The masks of a group's weights, each in the shape of its scores."""
    if config.scope == "global":
        return ops.select_topk_global(scores, kept)
    shares = kept_shares(config, [s.shape for s in scores], kept)
    return [_select_one(config, s, share) for s, share in zip(scores, shares, strict=True)]


def kept_shares(config: PruneConfig, shapes: Sequence[torch.Size], kept: float) -> list[float]:
    """The share that every tensor of a group keeps."""
    if config.scope != "erk":
        return [kept] * len(shapes)
    shares = erk({str(i): shape for i, shape in enumerate(shapes)}, kept)
    return list(shares.values())


def random_masks(config: PruneConfig, shapes: Sequence[torch.Size], kept: float) -> list[Tensor]:
    """Random masks at the layer budgets and by the seed of ``config``."""
    shares = kept_shares(config, shapes, kept)
    return [
        random_mask(shape, share, seed=config.seed, tensor=i)
        for i, (shape, share) in enumerate(zip(shapes, shares, strict=True))
    ]


def exchange(
    config: PruneConfig, weight: Tensor, mask: Tensor, growth: Tensor | None, t: int, index: int
) -> Regrowth:
    """The smallest of the active weights exchanged for those of the highest ``growth``.

    ``growth=None``: random ones (``config.grow == "random"``, or no gradient this time).
    """
    if growth is None:
        growth = random_scores(
            weight.shape, seed=config.seed, tensor=index, draw=t, device=weight.device
        )
    return drop_and_grow(weight, mask, growth, config.dropped(t))


def _select_one(config: PruneConfig, scores: Tensor, kept: float) -> Tensor:
    matrix = as_matrix(scores)
    if config.transposed:
        return select(config, matrix.t().contiguous(), kept).t().reshape(scores.shape)
    return select(config, matrix, kept).view(scores.shape)


def whole(tensor: Tensor) -> Tensor:
    """The whole tensor on this rank: all-gathered where it is sharded."""
    gathered: Any = tensor
    return gathered.full_tensor() if is_distributed(tensor) else tensor


def shard_like(tensor: Tensor, param: Tensor) -> Tensor:
    """The shard of a whole tensor, equal on all ranks, that belongs to the shard of ``param``."""
    if not is_distributed(param):
        return tensor
    from torch.distributed.tensor import distribute_tensor

    like: Any = param
    return distribute_tensor(
        tensor, like.device_mesh, like.placements, src_data_rank=None
    ).to_local()
