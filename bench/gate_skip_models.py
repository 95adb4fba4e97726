"""What ``bench gate_skip`` measures: single layers, and how a share of the gates of a layer is closed."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from bench.layers import Problem, conv, linear
from evoprune_kernels.nn import GatedConv2d, GatedLinear


def close(layer: GatedConv2d | GatedLinear, share: float) -> None:
    """Close ``round(share * channels)`` gates, the same for every layer of this width; one stays open at least."""
    channels = layer.weight.shape[0]
    closed = min(round(share * channels), channels - 1)
    order = torch.randperm(channels, generator=torch.Generator().manual_seed(channels))
    with torch.no_grad():
        layer.gate.theta[order[:closed]] = -1.0


def compacted_layer(
    problem: Problem, dense: nn.Module, gated: GatedConv2d | GatedLinear, dy: Tensor
) -> tuple[nn.Module, Tensor]:
    """A plain layer of the open channels alone, and the part of dY that is theirs."""
    index = (gated.gate.mean_gates() != 0).nonzero().flatten()
    small = problem.layer()
    assert isinstance(dense, nn.Conv2d | nn.Linear)
    small.weight = nn.Parameter(dense.weight.detach()[index])
    if dense.bias is not None:
        small.bias = nn.Parameter(dense.bias.detach()[index])
    if dy.dim() == 2:
        return small, dy[:, index].contiguous()
    last = not dy.is_contiguous()
    form = torch.channels_last if last else torch.contiguous_format
    small = small.to(memory_format=form)  # type: ignore[call-overload]
    return small, dy[:, index].contiguous(memory_format=form)


def layer_problems(quick: bool) -> list[Problem]:
    """The layers that are measured alone."""
    if quick:
        return [conv("ResNet-20", 2, 16, 32, 8), linear(16, 32, 32)]
    return [
        conv("ResNet-20", 64, 16, 16, 32),
        conv("ResNet-20", 64, 32, 32, 16),
        conv("ResNet-20", 64, 64, 64, 8),
        conv("ResNet-18", 8, 128, 128, 28),
        conv("ResNet-18", 8, 256, 256, 14),
        conv("ResNet-18", 8, 512, 512, 7),
        linear(2048, 768, 3072),
    ]
