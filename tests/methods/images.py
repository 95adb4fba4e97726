"""A task of a second for convolutions: scikit-learn's digits and a small network with batch norms."""

from __future__ import annotations

import torch
from sklearn.datasets import load_digits
from torch import nn


class Digits:
    """Batches ``(images, labels)`` of the first 512 digits in an order of the epoch."""

    def __init__(self):
        data = load_digits()
        self.images = torch.tensor(data.images, dtype=torch.float32).unsqueeze(1) / 16
        self.labels = torch.tensor(data.target).long()
        self.epoch = 0

    def set_epoch(self, epoch):
        self.epoch = epoch

    def __iter__(self):
        order = torch.randperm(512, generator=torch.Generator().manual_seed(self.epoch))
        for rows in order.split(32):
            yield self.images[rows], self.labels[rows]


TRAIN = Digits()
VALIDATION = [(TRAIN.images[512:1024], TRAIN.labels[512:1024])]
ARGUMENTS = {
    "steps": 64, "finetune": 16, "optimizer": "sgd", "lr": 0.05, "momentum": 0.9, "decay": "cosine",
    "finetune_lr": 0.01, "progress": False,
}  # fmt: skip


def make_model(seed=0):
    torch.manual_seed(seed)
    return nn.Sequential(
        nn.Conv2d(1, 8, 3, padding=1, bias=False), nn.BatchNorm2d(8), nn.ReLU(),
        nn.Conv2d(8, 12, 3, stride=2, padding=1), nn.BatchNorm2d(12), nn.ReLU(),
        nn.Conv2d(12, 12, 3, padding=1, bias=False), nn.BatchNorm2d(12), nn.ReLU(),
        nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(12, 10),
    )  # fmt: skip
