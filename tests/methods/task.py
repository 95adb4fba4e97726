"""A task of a second: clouds of points in 16 dimensions, a small perceptron, batches that know their epoch."""

from __future__ import annotations

import torch
from torch import nn


class Points:
    """Batches ``(points, labels)`` in an order of (seed, epoch)."""

    def __init__(self, count=256, batch=32, seed=0, shuffle=True):
        generator = torch.Generator().manual_seed(seed)
        centers = 1.5 * torch.randn(4, 16, generator=torch.Generator().manual_seed(99))
        self.labels = torch.randint(4, (count,), generator=generator)
        self.points = centers[self.labels] + torch.randn(count, 16, generator=generator)
        self.batch, self.epoch, self.shuffle = batch, 0, shuffle

    def set_epoch(self, epoch):
        self.epoch = epoch

    def __iter__(self):
        order = torch.arange(len(self.labels))
        if self.shuffle:
            generator = torch.Generator().manual_seed(self.epoch)
            order = torch.randperm(len(order), generator=generator)
        for rows in order.split(self.batch):
            yield self.points[rows], self.labels[rows]


def make_model(seed=0):
    torch.manual_seed(seed)
    return nn.Sequential(
        nn.Linear(16, 32), nn.ReLU(), nn.Dropout(0.1), nn.Linear(32, 32), nn.ReLU(), nn.Linear(32, 4)
    )  # fmt: skip


TRAIN, VALIDATION = Points(), Points(128, 64, seed=1, shuffle=False)
ARGUMENTS = {"steps": 40, "finetune": 24, "lr": 3e-3, "progress": False}
