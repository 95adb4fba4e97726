"""Scores -> masks for a configuration: the patterns, the ramp of n:m, global selection, and sharded parameters."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from evoprune_kernels import ops
from evoprune_kernels.formats.base import NM, Block, Channel
from evoprune_kernels.formats.nm import repeat_rows
from evoprune_kernels.ops.select_nm import sum_strips
from evoprune_kernels.optim._layout import is_distributed
from evoprune_kernels.optim.config import PruneConfig


def as_matrix(tensor: Tensor) -> Tensor:
    """``[out, everything else]``: how a weight of three or more dimensions is seen by a pattern."""
    return (
        tensor.reshape(tensor.shape[0], -1)
        if tensor.numel()
        else tensor.reshape(tensor.shape[0], 0)
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


def select_all(config: PruneConfig, scores: list[Tensor], kept: float) -> list[Tensor]:
    """The masks of a group's weights, each in the shape of its scores."""
    if config.scope == "tensor":
        return [_select_one(config, s, kept) for s in scores]
    return ops.select_topk_global(scores, kept)


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
