"""Random gated graphs of everything that compaction has a rule for, and of one thing that it has none for."""

from __future__ import annotations

import random

import torch
from torch import nn
from torch.nn import functional as F

from evoprune_kernels.nn import GatedConv2d

ACTIVATIONS = (nn.ReLU, nn.SiLU, nn.Hardswish, nn.ReLU6, nn.Sigmoid, nn.Tanh)
POOLS = (
    lambda: nn.MaxPool2d(3, 1, 1),
    lambda: nn.AvgPool2d(3, 1, 1),
    lambda: nn.AvgPool2d(3, 1, 1, count_include_pad=False),
)
KINDS = (
    *("conv", "conv", "conv", "bn", "bn", "act", "act", "cat", "sum", "add_", "mul"),
    *("depthwise", "groups", "pool", "share", "numbers", "norm", "dropout"),
)


class RandomGraph(nn.Module):
    """[B, 3, 4, 4] -> [B, 5] or [B, 3, 4, 4]; every seed is another graph."""

    def __init__(self, seed):
        super().__init__()
        self._random = random.Random(seed)
        self.layers, self.steps, self.channels = nn.ModuleList(), [], [3]
        self._add("layer", [0], self._conv(3, 8), 8)
        for _ in range(self._random.randint(4, 14)):
            self._grow()
        channels = self.channels[-1]
        self.head = self._random.choice(["flatten", "view", "pool", "conv"])
        if self.head == "conv":
            self.last = nn.Conv2d(channels, 3, 3, padding=1)
        else:
            self.last = nn.Linear(channels * (1 if self.head == "pool" else 16), 5)

    def _add(self, kind, sources, layer, channels):
        self.steps.append((kind, sources, len(self.layers)))
        self.layers.append(nn.Identity() if layer is None else layer)
        self.channels.append(channels)

    def _conv(self, inputs, outputs, groups=1):
        size = self._random.choice([1, 3])
        mode = self._random.choice(["zeros", "zeros", "replicate"])
        bias = self._random.random() < 0.5
        return GatedConv2d(
            inputs, outputs, size, 1, size // 2, groups=groups, bias=bias, padding_mode=mode
        )

    def _grow(self):
        pick = self._random.choice
        source = pick([len(self.channels) - 1, pick(range(1, len(self.channels)))])
        c, kind = self.channels[source], pick(KINDS)
        if kind == "conv":
            outputs = pick([4, 6, 8, 12])
            self._add("layer", [source], self._conv(c, outputs), outputs)
        elif kind == "groups":
            groups = pick([g for g in (1, 2, 3, 4) if c % g == 0])
            outputs = groups * pick([1, 2, 3])
            self._add("layer", [source], self._conv(c, outputs, groups), outputs)
        elif kind == "depthwise":
            times = pick([1, 1, 2])
            conv = nn.Conv2d(c, c * times, 3, padding=1, groups=c)
            self._add("layer", [source], pick([conv, GatedConv2d.from_conv(conv)]), c * times)
        elif kind == "cat" and c < 32:
            other = pick([i for i, n in enumerate(self.channels) if n <= 16])
            self._add("cat", [source, other], None, c + self.channels[other])
        elif kind in ("sum", "add_", "mul"):
            other = pick([i for i, n in enumerate(self.channels) if n == c and i > 0])
            self._add(kind, [source, other], None, c)
        elif kind == "share":
            layer = nn.Sequential(self._conv(c, 4), nn.ReLU(), nn.Conv2d(4, c, 1))
            self._add("share", [source], layer, c)
        elif kind == "numbers":
            self._add("numbers", [source], None, c)
        else:
            layers = {"bn": nn.BatchNorm2d(c), "norm": nn.GroupNorm(1, c), "dropout": nn.Dropout()}
            layers["act"] = pick([*(a() for a in ACTIVATIONS), nn.ReLU(inplace=True)])
            layers["pool"] = pick(POOLS)()
            self._add("layer", [source], layers.get(kind, nn.Identity()), c)

    def forward(self, x):
        found = [x]
        for kind, sources, index in self.steps:
            x, y = found[sources[0]], found[sources[-1]]
            if kind == "layer":
                z = self.layers[index](x)
            elif kind == "cat":
                z = torch.cat([x, y], 1)
            elif kind == "sum":
                z = x + y
            elif kind == "add_":
                z = x
                z += y.clone()
            elif kind == "mul":
                z = x * y
            elif kind == "share":
                z = x * torch.sigmoid(self.layers[index](x.mean((2, 3), keepdim=True)))
            else:
                z = (x * 0.5 + 1) / 2
            found.append(z)
        x = found[-1]
        if self.head == "flatten":
            x = torch.flatten(x, 1)
        elif self.head == "view":
            x = x.view(x.size(0), -1)
        elif self.head == "pool":
            x = F.adaptive_avg_pool2d(x, 1).flatten(1)
        return self.last(x)
