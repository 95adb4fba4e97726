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
    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # so small that more threads only wait for each other
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = nn.Sequential(
            nn.Linear(64, 96), nn.ReLU(), nn.Linear(96, 96), nn.ReLU(), nn.Linear(96, 10)
        )
        for _ in range(600):
            rows = torch.randint(len(images), (64,))
            loss = F.cross_entropy(model(images[rows]), labels[rows])
            gradients = torch.autograd.grad(loss, list(model.parameters()))
            with torch.no_grad():
                for parameter, gradient in zip(model.parameters(), gradients, strict=True):
                    parameter.sub_(gradient, alpha=0.2)
        accuracy = (model(images).argmax(1) == labels).float().mean().item()
    torch.set_num_threads(threads)
    assert accuracy > 0.95, accuracy  # it has learned something that pruning can damage
    return model.eval(), list(zip(images[:256].split(64), labels[:256].split(64), strict=True))
