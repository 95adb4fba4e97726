"""``gather_channels`` and ``scatter_channels`` in plain torch: the truth, the fallback and the benchmark baseline."""

from __future__ import annotations

import torch
from torch import Tensor

from evoprune_kernels.ops.channel_gate.reference import memory_format


def _is_channels_last(x: Tensor) -> bool:
    return memory_format(x) is torch.channels_last


def gather_channels_reference(x: Tensor, index: Tensor) -> Tensor:
    """``y[:, k] = x[:, index[k]]``; see ``gather_channels``."""
    if not _is_channels_last(x):
        return x.index_select(1, index)
    return x.permute(0, 2, 3, 1).index_select(3, index).permute(0, 3, 1, 2)


def scatter_channels_reference(x: Tensor, index: Tensor, channels: int) -> Tensor:
    """``y[:, index[k]] += x[:, k]`` from zero; see ``scatter_channels``."""
    shape = (x.shape[0], channels, *x.shape[2:])
    y = torch.zeros(shape, dtype=x.dtype, device=x.device)
    if _is_channels_last(x):
        y = y.contiguous(memory_format=torch.channels_last)
    return y.index_add_(1, index, x)
