"""Training with a PruneConfig ends at exactly the pattern, for every pattern, rule and optimizer."""

from __future__ import annotations

import pytest
import torch

import evoprune_kernels as ek

PATTERNS = [
    ("2:4", None, 0.5),
    ("1:4", None, 0.75),
    ("block:4x8", 0.75, 0.75),
    ("unstructured", 0.9, 0.9),
    ("channel", 0.5, 0.5),
]


def train(optimizer_class, steps=12, seed=0, model=None, **kwargs):
    torch.manual_seed(seed)
    model = model or torch.nn.Sequential(
        torch.nn.Linear(32, 64), torch.nn.ReLU(), torch.nn.Linear(64, 16)
    )
    optimizer = optimizer_class(model.named_parameters(), lr=0.05, **kwargs)
    x = torch.randn(128, 32)
    y = torch.randn(128, 16)
    losses = []
    for _ in range(steps):
        optimizer.zero_grad()
        loss = (model(x) - y).square().mean()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    return model, optimizer, losses


@pytest.mark.parametrize("optimizer_class", [ek.optim.AdamW, ek.optim.SGD])
@pytest.mark.parametrize("importance", ["magnitude", "evolution", "taylor"])
@pytest.mark.parametrize(("pattern", "sparsity", "expected"), PATTERNS)
def test_training_reaches_exactly_the_sparsity(
    optimizer_class, importance, pattern, sparsity, expected
):
    config = ek.PruneConfig(pattern, sparsity, importance, start=2, end=8, every=3)
    model, optimizer, losses = train(optimizer_class, prune=config)
    assert losses[-1] < losses[0]
    for name in ("0", "2"):
        weight = model.get_submodule(name).weight.detach()
        zero = weight == 0
        assert not weight[zero].signbit().any(), "a masked weight is -0.0"
        rounded = round(expected * weight.numel())
        assert abs(int(zero.sum()) - rounded) <= 1
        assert torch.equal(optimizer.masks()[model.get_submodule(name).weight], ~zero)
    assert (model[0].bias != 0).all()
    report = optimizer.sparsity_report()
    assert report["sparsity"] == pytest.approx(expected, abs=1e-3)
    assert set(report) == {"sparsity", "sparsity/0.weight", "sparsity/2.weight", "target/group0"}


def test_two_of_four_in_every_group():
    config = ek.PruneConfig("2:4", start=2, end=8, every=3)
    model, _, _ = train(ek.optim.AdamW, prune=config)
    assert ((model[0].weight == 0).view(64, 8, 4).sum(-1) == 2).all()
