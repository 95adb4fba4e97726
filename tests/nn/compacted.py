"""Gated models with a part closed, and what a compacted one is held to."""

from __future__ import annotations

import torch
from torch import nn

from evoprune_kernels.nn import compact, gates_of


def trained(model, closed=0.5, seed=0):
    """Batch norms with statistics, scales and shifts of every sign, and a part of every layer's gates closed."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for module in model.modules():
            if isinstance(module, nn.BatchNorm1d | nn.BatchNorm2d):
                for tensor in (module.weight, module.bias, module.running_mean):
                    tensor.copy_(torch.randn(tensor.shape, generator=generator))
                module.running_var.copy_(0.5 + torch.rand(module.num_features, generator=generator))
    for gate in gates_of(model).values():
        gate.freeze(torch.rand(gate.channels, generator=generator) >= closed)
    return model.eval()


def compacted(model, example_inputs):
    """``compact`` without a measurement."""
    return compact(model, example_inputs, rounds=0)


def assert_same(model, small, *inputs):
    with torch.no_grad():
        want, got = model(*inputs), small(*inputs)
    assert want.shape == got.shape and want.std() > 0
    bound = 1e-10 if want.dtype == torch.float64 else 2e-5
    assert (want - got).abs().max() <= bound * want.abs().max()


def close(layer, *channels):
    """Freeze a gate with these channels closed."""
    layer.gate.freeze(torch.tensor([c not in channels for c in range(layer.gate.channels)]))
