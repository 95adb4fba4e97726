"""Models and data that the one-shot selections are tested on."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from torch.nn import functional as F


@pytest.fixture(scope="session")
def digits():
    """``(model, batches)``: a perceptron trained on scikit-learn's digits, and 256 of the images as four batches."""
    data = pytest.importorskip("sklearn.datasets").load_digits()
    images = torch.tensor(data.data, dtype=torch.float32) / 16
    labels = torch.tensor(data.target)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = nn.Sequential(
            nn.Linear(64, 96), nn.ReLU(), nn.Linear(96, 96), nn.ReLU(), nn.Linear(96, 10)
        )
        optimizer = torch.optim.Adam(model.parameters(), lr=3e-3)
        for _ in range(300):
            rows = torch.randint(len(images), (64,))
            loss = F.cross_entropy(model(images[rows]), labels[rows])
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
    assert loss.item() < 0.2  # it has learned something that pruning can damage
    return model.eval(), list(zip(images[:256].split(64), labels[:256].split(64), strict=True))
