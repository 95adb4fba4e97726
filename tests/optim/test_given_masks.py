"""``set_masks_``, ``masked``, ``apply_masks_``, SR-STE, and patterns that a shape cannot take."""

from __future__ import annotations

import pytest
import torch
from torch import nn

import evoprune_kernels as ek
from evoprune_kernels import PruneConfig

GIVEN = PruneConfig("unstructured", ramp="given")


def layer_and_optimizer(optimizer_class=ek.optim.AdamW, config=GIVEN, **kwargs):
    torch.manual_seed(0)
    layer = nn.Linear(6, 4)
    return layer, optimizer_class(layer.named_parameters(), lr=0.1, prune=config, **kwargs)


def one_step(layer, optimizer, seed=0):
    torch.manual_seed(seed)
    optimizer.zero_grad()
    layer(torch.randn(8, 6)).square().sum().backward()
    optimizer.step()


@pytest.mark.parametrize("optimizer_class", [ek.optim.AdamW, ek.optim.SGD])
@pytest.mark.parametrize("by_name", [True, False])
@pytest.mark.parametrize("stepped", [True, False])
def test_given_masks_hold_from_then_on(optimizer_class, by_name, stepped):
    layer, optimizer = layer_and_optimizer(optimizer_class)
    if stepped:
        one_step(layer, optimizer)
        assert bool((layer.weight != 0).all())
    mask = torch.rand(4, 6, generator=torch.Generator().manual_seed(1)) < 0.5
    optimizer.set_masks_({"weight" if by_name else layer.weight: mask})
    assert torch.equal(layer.weight != 0, mask)
    kept = layer.weight[mask].clone()
    for seed in range(3):
        one_step(layer, optimizer, seed)
        assert bool((layer.weight[~mask] == 0).all())
    assert bool((layer.weight[mask] != kept).all())
    assert torch.equal(optimizer.masks()[layer.weight], mask)
    assert optimizer.sparsity_report()["sparsity/weight"] == pytest.approx(
        1 - mask.double().mean().item(), abs=1e-12
    )


def test_the_schedule_never_chooses_when_masks_are_given():
    layer, optimizer = layer_and_optimizer()
    for seed in range(5):
        one_step(layer, optimizer, seed)
    optimizer.refresh_masks_()
    assert optimizer.masks() == {} and bool((layer.weight != 0).all())


@pytest.mark.parametrize(
    ("masks", "error", "message"),
    [
        ({"other": torch.ones(4, 6).bool()}, ValueError, "other is in no pruned group"),
        ({"bias": torch.ones(4).bool()}, ValueError, r"bias is in no pruned group.*\['weight'\]"),
        ({"weight": torch.ones(4, 5).bool()}, ValueError, r"shape \(4, 6\), got \(4, 5\)"),
        ({"weight": torch.ones(4, 6)}, TypeError, "torch.bool, got torch.float32"),
    ],
)
def test_bad_masks_change_nothing(masks, error, message):
    layer, optimizer = layer_and_optimizer()
    before = layer.weight.detach().clone()
    with pytest.raises(error, match=message):
        optimizer.set_masks_({"weight": torch.zeros(4, 6).bool()} | masks)
    assert torch.equal(layer.weight, before) and optimizer.masks() == {}


def test_masked_hides_and_brings_back_also_after_an_error():
    config = PruneConfig("2:4", importance="magnitude", sparse_decay=2e-4, every=1)
    layer, optimizer = layer_and_optimizer(config=config)
    one_step(layer, optimizer)
    dense, mask = layer.weight.detach().clone(), optimizer.masks()[layer.weight]
    assert bool((dense != 0).all()) and int(mask.sum()) == 16
    with pytest.raises(KeyError), optimizer.masked():
        assert torch.equal(layer.weight, dense * mask)
        raise KeyError
    assert torch.equal(layer.weight, dense)
    optimizer.apply_masks_()
    assert torch.equal(layer.weight, dense * mask)


@pytest.mark.parametrize("momentum", [0.0, 0.9])
def test_sr_ste_is_the_published_step(momentum):
    """Against autograd of an explicit straight-through estimator with g + decay * (1 - m) * w, plain SGD."""
    decay, lr = 0.05, 0.1
    config = PruneConfig(
        "2:4", importance="magnitude", sparse_decay=decay, every=1, ramp="constant", start=1
    )
    layer, optimizer = layer_and_optimizer(ek.optim.SGD, config, momentum=momentum)
    w = layer.weight.detach().double().clone()
    b = layer.bias.detach().double().clone()
    buffers = None
    mask = torch.ones_like(w)
    for seed in range(6):
        torch.manual_seed(seed)
        x = torch.randn(8, 6)
        optimizer.zero_grad()
        with optimizer.masked():
            layer(x).square().sum().backward()
        optimizer.step()

        masked, bias = (w * mask).requires_grad_(), b.clone().requires_grad_()
        (x.double() @ masked.T + bias).square().sum().backward()
        grads = [masked.grad + decay * (1 - mask) * w, bias.grad]
        if momentum:
            buffers = (
                grads
                if buffers is None
                else [momentum * v + g for v, g in zip(buffers, grads, strict=True)]
            )
            grads = buffers
        w, b = w - lr * grads[0], b - lr * grads[1]
        mask = torch.zeros_like(w)
        for row in range(4):
            for start in (0, 4):
                group = w[row, start : start + 4].abs().tolist()
                for i in sorted(range(len(group)), key=lambda i: (-group[i], i))[:2]:
                    mask[row, start + i] = 1
        assert torch.equal(optimizer.masks()[layer.weight], mask.bool())
        torch.testing.assert_close(layer.weight.double(), w, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(
    ("config", "shape", "message"),
    [
        (PruneConfig("2:4"), (8, 2), r"head of shape \(8, 2\).*'2:4': it has 2 columns"),
        (PruneConfig("block:16x16", 0.5), (8, 16), r"\(8, 16\).*a single block"),
        (PruneConfig("channel", 0.5), (1, 64), r"\(1, 64\).*a single channel"),
        (PruneConfig("2:4", transposed=True), (2, 8), r"\(2, 8\).*it has 2 columns"),
    ],
)
def test_a_pattern_that_a_shape_cannot_take_is_named(config, shape, message):
    with pytest.raises(ValueError, match=message):
        ek.optim.SGD([("head", nn.Parameter(torch.ones(shape)))], lr=0.1, prune=config)


def test_convolutions_are_prunable_on_request():
    model = nn.Sequential(nn.Conv2d(3, 8, 3), nn.Flatten(), nn.Linear(8, 4))
    groups = ek.optim.prunable_groups(model, GIVEN, convolutions=True)
    assert [n for n, _ in groups[0]["params"]] == ["0.weight", "2.weight"]
    groups = ek.optim.prunable_groups(model, GIVEN)
    assert [n for n, _ in groups[0]["params"]] == ["2.weight"]
