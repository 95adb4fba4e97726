"""Small models of every kind of graph that compaction meets."""

from __future__ import annotations

import torch
from torch import nn
from torch.nn import functional as F


class BasicBlock(nn.Module):
    def __init__(self, inputs, outputs, stride=1):
        super().__init__()
        self.conv1 = nn.Conv2d(inputs, outputs, 3, stride, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(outputs)
        self.conv2 = nn.Conv2d(outputs, outputs, 3, 1, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(outputs)
        self.relu = nn.ReLU(inplace=True)
        self.down = None
        if stride != 1 or inputs != outputs:
            self.down = nn.Sequential(
                nn.Conv2d(inputs, outputs, 1, stride, bias=False), nn.BatchNorm2d(outputs)
            )

    def forward(self, x):
        y = self.bn2(self.conv2(self.relu(self.bn1(self.conv1(x)))))
        y += x if self.down is None else self.down(x)
        return self.relu(y)


class ResNet(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv, self.bn = nn.Conv2d(3, 8, 3, padding=1, bias=False), nn.BatchNorm2d(8)
        self.layers = nn.Sequential(BasicBlock(8, 8), BasicBlock(8, 12, 2), BasicBlock(12, 12))
        self.fc = nn.Linear(12, 5)

    def forward(self, x):
        x = self.layers(F.relu(self.bn(self.conv(x))))
        return self.fc(torch.flatten(F.adaptive_avg_pool2d(x, 1), 1))


class DenseNet(nn.Module):
    def __init__(self):
        super().__init__()
        self.a, self.b = nn.Conv2d(3, 6, 3, padding=1), nn.Conv2d(9, 4, 3, padding=1)
        self.c = nn.Conv2d(13, 5, 1)

    def forward(self, x):
        x = torch.cat([x, F.relu(self.a(x))], 1)
        x = torch.cat([x, F.relu(self.b(x))], 1)
        return self.c(x).mean((2, 3))


def vgg():
    return nn.Sequential(
        *(nn.Conv2d(3, 8, 3, padding=1), nn.BatchNorm2d(8), nn.ReLU(inplace=True)),
        nn.MaxPool2d(2),
        *(nn.Conv2d(8, 12, 3, padding=1), nn.BatchNorm2d(12), nn.ReLU(), nn.AvgPool2d(2)),
        *(nn.Flatten(), nn.Linear(12 * 4, 10), nn.BatchNorm1d(10), nn.GELU(), nn.Linear(10, 4)),
    )


def mobilenet():
    layers = [nn.Conv2d(3, 8, 3, 2, 1), nn.BatchNorm2d(8), nn.ReLU6()]
    for inputs, outputs in [(8, 12), (12, 10)]:
        layers += [nn.Conv2d(inputs, inputs, 3, 1, 1, groups=inputs, bias=False)]
        layers += [nn.BatchNorm2d(inputs), nn.Hardswish()]
        layers += [nn.Conv2d(inputs, outputs, 1, bias=False), nn.BatchNorm2d(outputs), nn.ReLU6()]
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(10, 3))


def grouped():
    return nn.Sequential(
        *(nn.Conv2d(3, 8, 3), nn.ReLU(), nn.Conv2d(8, 8, 3, groups=2), nn.BatchNorm2d(8)),
        *(nn.ReLU(), nn.Conv2d(8, 6, 1), nn.ReLU(), nn.Conv2d(6, 4, 1)),
    )


class DenseLayers(nn.Module):
    """BN, ReLU, conv over everything before, as in DenseNet, with a transition that halves."""

    def __init__(self):
        super().__init__()
        self.stem = nn.Conv2d(3, 8, 3, padding=1, bias=False)
        self.norms = nn.ModuleList(nn.BatchNorm2d(8 + 4 * i) for i in range(3))
        self.convs = nn.ModuleList(
            nn.Conv2d(8 + 4 * i, 4, 3, padding=1, bias=False) for i in range(3)
        )
        self.bn, self.transition = nn.BatchNorm2d(20), nn.Conv2d(20, 10, 1)
        self.pool, self.fc = nn.AvgPool2d(2), nn.Linear(10, 3)

    def forward(self, x):
        found = [self.stem(x)]
        for norm, conv in zip(self.norms, self.convs, strict=True):
            found.append(conv(F.relu(norm(torch.cat(found, 1)))))
        x = self.pool(self.transition(F.relu(self.bn(torch.cat(found, dim=1)))))
        return self.fc(F.relu(x).mean([2, 3]))


class InvertedResidual(nn.Module):
    def __init__(self, channels, hidden):
        super().__init__()
        self.expand = nn.Sequential(
            nn.Conv2d(channels, hidden, 1, bias=False), nn.BatchNorm2d(hidden), nn.ReLU6()
        )
        self.depth = nn.Sequential(
            nn.Conv2d(hidden, hidden, 3, padding=1, groups=hidden, bias=False),
            nn.BatchNorm2d(hidden),
            nn.ReLU6(),
        )
        self.project = nn.Sequential(
            nn.Conv2d(hidden, channels, 1, bias=False), nn.BatchNorm2d(channels)
        )

    def forward(self, x):
        return x + self.project(self.depth(self.expand(x)))


def inverted():
    return nn.Sequential(
        *(nn.Conv2d(3, 6, 3, padding=1, bias=False), nn.BatchNorm2d(6), nn.Hardswish()),
        *(InvertedResidual(6, 18), InvertedResidual(6, 12), nn.Conv2d(6, 9, 1), nn.SiLU()),
        *(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Dropout(0.2), nn.Linear(9, 4)),
    )


class ResNeXtBlock(nn.Module):
    def __init__(self, channels, width, groups):
        super().__init__()
        self.conv1, self.bn1 = nn.Conv2d(channels, width, 1, bias=False), nn.BatchNorm2d(width)
        self.conv2 = nn.Conv2d(width, width, 3, padding=1, groups=groups, bias=False)
        self.bn2 = nn.BatchNorm2d(width)
        self.conv3, self.bn3 = nn.Conv2d(width, channels, 1, bias=False), nn.BatchNorm2d(channels)

    def forward(self, x):
        y = F.relu(self.bn1(self.conv1(x)))
        y = self.bn3(self.conv3(F.relu(self.bn2(self.conv2(y)))))
        return F.relu(x + y)


def resnext():
    return nn.Sequential(
        *(nn.Conv2d(3, 8, 3, padding=1), nn.ReLU(), ResNeXtBlock(8, 12, 3), ResNeXtBlock(8, 8, 4)),
        *(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 3)),
    )


class SqueezeExcite(nn.Module):
    """A share of each channel from its mean: by convolutions, or by linear layers and views."""

    def __init__(self, linear=False):
        super().__init__()
        self.conv, self.bn = nn.Conv2d(3, 8, 3, padding=1), nn.BatchNorm2d(8)
        self.down, self.up = (
            (nn.Linear(8, 4), nn.Linear(4, 8))
            if linear
            else (nn.Conv2d(8, 4, 1), nn.Conv2d(4, 8, 1))
        )
        self.linear, self.last = linear, nn.Conv2d(8, 5, 3, padding=1)

    def forward(self, x):
        x = F.relu(self.bn(self.conv(x)))
        batch, channels, _, _ = x.size()
        share = F.adaptive_avg_pool2d(x, 1)
        if self.linear:
            share = share.view(batch, channels)
        share = torch.sigmoid(self.up(F.relu(self.down(share))))
        if self.linear:
            share = share.view(batch, channels, 1, 1).expand_as(x)
        return self.last(x * share)
