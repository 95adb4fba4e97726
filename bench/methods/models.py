"""The networks of the papers, as ordinary modules: nothing here knows about pruning."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import pairwise

import torch
from torch import Tensor, nn

from bench.char_gpt import CharGPT, GPTConfig
from bench.text import SYMBOLS
from evoprune_kernels._check import check

#: MNIST and Fashion-MNIST (methods: 784-256-128-64-10)
MNIST_WIDTHS = (784, 256, 128, 64, 10)
#: scikit-learn's digits of 8x8
DIGITS_WIDTHS = (64, 64, 32, 10)
#: characters that the small GPT sees
CONTEXT = 64


def seeded(make: Callable[[], nn.Module], seed: int) -> nn.Module:
    """``make()`` with weights drawn from ``seed``; the global generator is left as it was."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return make()


def mlp(widths: Sequence[int]) -> nn.Sequential:
    """Images [B, ...] of ``widths[0]`` pixels -> logits [B, widths[-1]]; ReLU between the layers."""
    layers: list[nn.Module] = [nn.Flatten()]
    for width, following in pairwise(widths):
        layers += [nn.Linear(width, following), nn.ReLU()]
    return nn.Sequential(*layers[:-1])


def lenet(channels: int) -> nn.Sequential:
    """Images [B, channels, 32, 32] -> logits [B, 10]: conv5x5 to 6, pool, conv5x5 to 16, pool, 400-120-84-10."""
    return nn.Sequential(
        nn.Conv2d(channels, 6, 5),
        nn.ReLU(),
        nn.MaxPool2d(2),
        nn.Conv2d(6, 16, 5),
        nn.ReLU(),
        nn.MaxPool2d(2),
        nn.Flatten(),
        nn.Linear(400, 120),
        nn.ReLU(),
        nn.Linear(120, 84),
        nn.ReLU(),
        nn.Linear(84, 10),
    )


class BasicBlock(nn.Module):
    """``relu(norm(conv2(relu(norm(conv1(x))))) + shortcut(x))``, ``inner`` channels between the convolutions."""

    def __init__(self, channels: int, out: int, stride: int, inner: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(channels, inner, 3, stride, 1, bias=False)
        self.norm1 = nn.BatchNorm2d(inner)
        self.relu = nn.ReLU()
        self.conv2 = nn.Conv2d(inner, out, 3, 1, 1, bias=False)
        self.norm2 = nn.BatchNorm2d(out)
        self.shortcut: nn.Module = nn.Identity()
        if stride != 1 or channels != out:
            projection = nn.Conv2d(channels, out, 1, stride, bias=False)
            self.shortcut = nn.Sequential(projection, nn.BatchNorm2d(out))

    def forward(self, x: Tensor) -> Tensor:
        """[B, channels, H, W] -> [B, out, H / stride, W / stride]."""
        inner = self.relu(self.norm1(self.conv1(x)))
        return self.relu(self.norm2(self.conv2(inner)) + self.shortcut(x))


def resnet(
    channels: int, width: int = 16, blocks: int = 3, inner: Sequence[int] | None = None
) -> nn.Sequential:
    """Images [B, channels, H, W] -> logits [B, 10]: ``blocks`` blocks in each of 3 stages (``width`` times 1, 2, 4).

    ResNet-20 has 3 blocks and width 16; shortcuts that change the shape are 1x1 convolutions. ``inner`` gives every
    block's channels between its two convolutions: what compaction leaves of them.
    """
    widths = [width << stage for stage in range(3) for _ in range(blocks)]
    inner = widths if inner is None else inner
    check(len(inner) == len(widths), f"expected {len(widths)} inner widths, got {len(inner)}")
    layers: list[nn.Module] = [
        nn.Conv2d(channels, width, 3, 1, 1, bias=False),
        nn.BatchNorm2d(width),
        nn.ReLU(),
    ]
    before = width
    for out, between in zip(widths, inner, strict=True):
        layers.append(BasicBlock(before, out, 1 if out == before else 2, between))
        before = out
    layers += [nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(before, 10)]
    return nn.Sequential(*layers)


def small_gpt() -> CharGPT:
    """Characters [B, T] with T <= 64 -> logits [B, T, 96]: 2 blocks of width 128 with 4 heads."""
    return CharGPT(GPTConfig(len(SYMBOLS), context=CONTEXT, layers=2, width=128, heads=4))
