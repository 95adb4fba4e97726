"""``gather_channels`` and ``scatter_channels`` in plain torch: the truth, the fallback and the benchmark baseline."""

from __future__ import annotations

import torch
from torch import Tensor

from evoprune_kernels.ops._channels import memory_format


def gather_channels_reference(x: Tensor, index: Tensor) -> Tensor:
    """``y[:, k] = x[:, index[k]]``; see ``gather_channels``."""
    if memory_format(x) is torch.channels_last:
        return x.permute(0, 2, 3, 1).index_select(3, index).permute(0, 3, 1, 2)
    return x.index_select(1, index)


def scatter_channels_reference(x: Tensor, index: Tensor, channels: int) -> Tensor:
    """``y[:, index[k]] += x[:, k]`` from zero; see ``scatter_channels``."""
    shape = (x.shape[0], channels, *x.shape[2:])
    y = torch.zeros(shape, dtype=x.dtype, device=x.device).contiguous(
        memory_format=memory_format(x)
    )
    return y.index_add_(1, index, x)
