"""The networks of the papers, as ordinary modules: nothing here knows about pruning."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import pairwise

import torch
from torch import nn

from bench.char_gpt import CharGPT, GPTConfig
from bench.text import SYMBOLS

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


def small_gpt() -> CharGPT:
    """Characters [B, T] with T <= 64 -> logits [B, T, 96]: 2 blocks of width 128 with 4 heads."""
    return CharGPT(GPTConfig(len(SYMBOLS), context=CONTEXT, layers=2, width=128, heads=4))
