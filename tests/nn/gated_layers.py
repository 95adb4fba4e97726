"""Gated layers of every kind for the tests, and convolutions of every kind."""

from __future__ import annotations

import copy

import pytest
import torch

CONVS = {
    "plain": {"kernel_size": 3},
    "1x1": {"kernel_size": 1, "bias": False},
    "stride": {"kernel_size": (3, 2), "stride": (2, 1), "padding": (1, 0)},
    "dilation": {"kernel_size": 3, "dilation": 2, "padding": 2},
    "same": {"kernel_size": 3, "padding": "same"},
    "groups": {"kernel_size": 3, "groups": 2, "padding": 1},
    "depthwise": {"kernel_size": 3, "groups": 4, "padding": 1},
    "reflect": {"kernel_size": 3, "padding": 1, "padding_mode": "reflect"},
    "replicate": {"kernel_size": 3, "padding": 1, "padding_mode": "replicate"},
    "circular": {"kernel_size": 3, "padding": 1, "padding_mode": "circular"},
}
every_conv = pytest.mark.parametrize("options", CONVS.values(), ids=CONVS.keys())
both_kinds = pytest.mark.parametrize("dynamic", [False, True], ids=["static", "dynamic"])
#: of 8 channels; the tests let skipping begin with one
CLOSED = (1, 4, 6)


def closed_layer(kind, *sizes, dynamic=False, closed=CLOSED, **options):
    """Channels ``closed`` are so for every sample; dynamic gates of the others differ among samples."""
    torch.manual_seed(5)
    layer = kind(*sizes, dynamic=dynamic, skip_closed=True, **options)
    gate = layer.gate
    with torch.no_grad():
        if dynamic:
            for weight in (gate.hidden_weight, gate.out_weight):
                weight.normal_(0, 3)
            gate.out_bias.fill_(0.3)
            gate.out_bias[list(closed)] = -1e4
        else:
            gate.theta[list(closed)] = -1.0
    return layer


def unskipped(layer):
    """The same layer, computing everything."""
    other = copy.deepcopy(layer)
    for module in other.modules():
        if hasattr(module, "skip_closed"):
            module.skip_closed = False
    return other


def never_open(gates):
    """Channels that are closed for the whole batch, of gates [C] or [B, C]."""
    return (gates == 0) if gates.dim() == 1 else (gates == 0).all(0)
