"""Single layers of known networks, for the benchmarks of training."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from torch import nn


@dataclass(frozen=True)
class Problem:
    """One layer and its input; ``layer`` makes the dense module."""

    name: str
    layer: Callable[[], nn.Conv2d | nn.Linear]
    shape: tuple[int, ...]


def conv(
    net: str, batch: int, c: int, n: int, size: int, k: int = 3, stride: int = 1, groups: int = 1
) -> Problem:
    """A convolution with the padding of a ResNet, without bias, as before a batch norm."""
    kind = "depthwise " if groups == c else ""
    name = (
        f"{net} {kind}{k}x{k} {c}->{n}"
        + (f"/{stride}" if stride > 1 else "")
        + f", {batch}x{size}x{size}"
    )

    def make() -> nn.Conv2d:
        return nn.Conv2d(c, n, k, stride, k // 2, groups=groups, bias=False)

    return Problem(name, make, (batch, c, size, size))


def linear(tokens: int, inputs: int, outputs: int) -> Problem:
    """A linear layer with bias."""
    return Problem(
        f"linear {inputs}->{outputs}, {tokens} tokens",
        lambda: nn.Linear(inputs, outputs),
        (tokens, inputs),
    )
