"""Some filters of a weight, and their way back, in the weight's memory order.

A filter is a row of memory in both orders, contiguous [N, C, kh, kw] and channels_last [N, kh, kw, C], so that moving
it is a copy. Of a channels_last weight torch's ``index_select`` along the first dimension gives contiguous filters;
the convolution turns them back, and its gradient does the same again.
"""

from __future__ import annotations

import torch
from torch import Tensor

from evoprune_kernels.ops._channels import memory_format


def select_filters(weight: Tensor, index: Tensor) -> Tensor:
    """``weight[index]`` [K, ...] of a weight [N, ...], in its memory order; differentiable.

    Example:
        >>> weight = torch.ones(4, 2, 3, 3).to(memory_format=torch.channels_last)
        >>> select_filters(weight, torch.tensor([0, 3])).stride()
        (18, 1, 6, 2)
    """
    if memory_format(weight) != torch.channels_last:
        return weight.index_select(0, index)
    return weight.permute(0, 2, 3, 1).index_select(0, index).permute(0, 3, 1, 2)


def scatter_filters(rows: Tensor, index: Tensor, like: Tensor) -> Tensor:
    """Zeros as ``like`` [N, ...] with ``rows`` [K, ...] at ``index`` of the first dimension.

    Example:
        >>> scatter_filters(torch.ones(1, 2), torch.tensor([1]), torch.ones(2, 2))
        tensor([[0., 0.],
                [1., 1.]])
    """
    zeros = torch.zeros_like(like)
    if memory_format(like) == torch.channels_last:
        zeros.permute(0, 2, 3, 1).index_copy_(0, index, rows.permute(0, 2, 3, 1))
        return zeros
    return zeros.index_copy_(0, index, rows)
