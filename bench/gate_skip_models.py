"""What ``bench gate_skip`` measures: a ResNet for small images, single layers, and closing a share of their gates."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from evoprune_kernels.nn import GatedConv2d, GatedLinear


class BasicBlock(nn.Module):
    """Two 3x3 convolutions around an identity, or a 1x1 convolution where the shape changes."""

    def __init__(self, inputs: int, outputs: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(inputs, outputs, 3, stride, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(outputs)
        self.conv2 = nn.Conv2d(outputs, outputs, 3, 1, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(outputs)
        same = stride == 1 and inputs == outputs
        self.down: nn.Module = nn.Identity()
        if not same:
            conv = nn.Conv2d(inputs, outputs, 1, stride, bias=False)
            self.down = nn.Sequential(conv, nn.BatchNorm2d(outputs))

    def forward(self, x: Tensor) -> Tensor:
        y = self.bn2(self.conv2(F.relu(self.bn1(self.conv1(x)))))
        return F.relu(y + self.down(x))


class ResNet(nn.Module):
    """``6 * blocks + 2`` layers, three stages of ``width``, twice and four times ``width`` channels; ten classes.

    Source:
        He et al., "Deep Residual Learning for Image Recognition", section 4.2 (with projections at the borders).
    """

    def __init__(self, width: int, blocks: int) -> None:
        super().__init__()
        self.width, self.blocks = width, blocks
        self.conv = nn.Conv2d(3, width, 3, padding=1, bias=False)
        self.bn = nn.BatchNorm2d(width)
        layers, inputs = [], width
        for stage in range(3):
            for block in range(blocks):
                outputs = width << stage
                layers.append(BasicBlock(inputs, outputs, 2 if stage and not block else 1))
                inputs = outputs
        self.layers = nn.Sequential(*layers)
        self.fc = nn.Linear(inputs, 10)

    def forward(self, x: Tensor) -> Tensor:
        """[B, 3, H, W] -> [B, 10]."""
        x = self.layers(F.relu(self.bn(self.conv(x))))
        return self.fc(F.adaptive_avg_pool2d(x, 1).flatten(1))


def resnet(width: int = 16, blocks: int = 3, *, like: nn.Module | None = None) -> ResNet:
    """A new network, or one with the weights of ``like``."""
    if like is None:
        return ResNet(width, blocks)
    assert isinstance(like, ResNet)
    model = ResNet(like.width, like.blocks)
    model.load_state_dict(like.state_dict())
    return model


def close(layer: GatedConv2d | GatedLinear, share: float) -> None:
    """Close ``round(share * channels)`` gates, the same for every layer of this width; one stays open at least."""
    channels = layer.weight.shape[0]
    closed = min(round(share * channels), channels - 1)
    order = torch.randperm(channels, generator=torch.Generator().manual_seed(channels))
    with torch.no_grad():
        layer.gate.theta[order[:closed]] = -1.0


@dataclass(frozen=True)
class Problem:
    """One layer and its input; ``layer`` makes the dense module."""

    name: str
    layer: Callable[[], nn.Conv2d | nn.Linear]
    shape: tuple[int, ...]

    def compacted(
        self, dense: nn.Module, gated: GatedConv2d | GatedLinear, dy: Tensor
    ) -> tuple[nn.Module, Tensor]:
        """A plain layer of the open channels alone, and the part of dY that is theirs."""
        index = (gated.gate.mean_gates() != 0).nonzero().flatten()
        small = self.layer()
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


def conv(net: str, batch: int, c: int, n: int, size: int, stride: int = 1) -> Problem:
    """A 3x3 convolution of a ResNet, without bias, as before a batch norm."""
    name = f"{net} 3x3 {c}->{n}" + (f"/{stride}" if stride > 1 else "") + f", {batch}x{size}x{size}"
    return Problem(name, lambda: nn.Conv2d(c, n, 3, stride, 1, bias=False), (batch, c, size, size))


def linear(tokens: int, inputs: int, outputs: int) -> Problem:
    """A linear layer with bias."""
    name = f"linear {inputs}->{outputs}, {tokens} tokens"
    return Problem(name, lambda: nn.Linear(inputs, outputs), (tokens, inputs))


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
