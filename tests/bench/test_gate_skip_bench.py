"""``bench gate_skip``: its FLOPs by hand, its checks, and what a quick run writes."""

from __future__ import annotations

import json

import pytest
import torch
from torch import nn

from bench import gate, gate_skip
from bench.__main__ import main
from bench.gate_skip_models import close, layer_problems
from bench.methods import models
from evoprune_kernels.nn import GatedConv2d, gate_model_, skipping


def test_quick_writes_time_and_flops(tmp_path, capsys):
    target = tmp_path / "gate-skip.json"
    options = ["--quick", "--no-gate", "--format", "contiguous", "--json", str(target)]
    assert main(["gate_skip", *options]) == 0
    record = json.loads(target.read_text())
    assert record["label"].startswith("quick") and record["threads"] == 1
    (model,) = record["results"]["model"]
    assert [c["share"] for c in model["closed"]] == [0, 0.25, 0.5, 0.75, 0.9]
    assert set(model["seconds"]) == {"dense", "dense (A/A)"} | {
        name(share) for name in gate_skip.KINDS.values() for share in gate_skip.SHARES
    }
    for kind in ("skipped", "compacted"):
        saved = [c["flops_saved"][kind] for c in model["closed"]]
        assert saved[0] == 0 and saved == sorted(saved) and saved[-1] > 0.5
    layers = record["results"]["layers"]
    assert [row["layer"] for row in layers] == [p.name for p in layer_problems(quick=True)]
    assert [c["flops_saved"] for c in layers[0]["closed"]] == [
        1 / 16,
        1 / 8,
        0.25,
        0.5,
        0.75,
        29 / 32,
    ]
    assert skipping.LEAST_CLOSED == 8  # the benchmark put it back
    assert "ResNet-8, width 8" in capsys.readouterr().out


def test_flops_by_hand():
    """Of a stem whose input needs no gradient, and a skipping convolution behind it."""
    stem, conv = nn.Conv2d(3, 16, 3, padding=1), GatedConv2d(16, 32, 1, skip_closed=True)
    images = torch.zeros(2, 3, 4, 5)
    model = nn.Sequential(stem, conv)
    first = 2 * 2 * (2 * 4 * 5) * 16 * 27
    assert gate_skip.flops(model, images) == first + 3 * 2 * 40 * 32 * 16
    close(conv, 0.75)
    assert gate_skip.flops(model, images) == first + 3 * 2 * 40 * 8 * 16


def test_layers_of_one_width_close_the_same_channels():
    model = models.resnet(3, 8, 1)
    gate_model_(model)
    for layer in model.modules():
        if isinstance(layer, GatedConv2d):
            close(layer, 0.5)
    opened = [m.gate.freeze() for m in model.modules() if isinstance(m, GatedConv2d)]
    assert all(o.float().mean() == 0.5 for o in opened)
    assert all(torch.equal(a, b) for a in opened for b in opened if len(a) == len(b))


def test_wrong_gradients_are_refused():
    conv, x = nn.Conv2d(4, 16, 3), torch.randn(2, 4, 6, 6, requires_grad=True)
    dy = torch.randn(2, 16, 4, 4)
    true = gate_skip.with_gates(conv, 0.5, skip=False)
    skips = gate_skip.with_gates(conv, 0.5, skip=True)
    gate_skip.check_layer(true, skips, x, dy)
    close(skips, 0.75)  # other channels
    with pytest.raises(gate.GateError, match="against all computed"):
        gate_skip.check_layer(true, skips, x, dy)


def test_models_that_crash_torch_are_left_out():
    last = torch.zeros(2, 3, 4, 4).contiguous(memory_format=torch.channels_last)
    for conv, crashes in (
        (nn.Conv2d(4, 8, 1, stride=2), True),
        (nn.Conv2d(8, 8, 1, stride=2), False),
        (nn.Conv2d(4, 8, 3, stride=2), False),
    ):
        reason = gate_skip.left_out(nn.Sequential(conv), last)
        assert (reason is not None) == crashes
        assert gate_skip.left_out(nn.Sequential(conv), torch.zeros(2, 3, 4, 4)) is None
    assert "0 is a 1x1 convolution of 4 channels, stride 2" in gate_skip.left_out(
        nn.Sequential(nn.Conv2d(4, 8, 1, stride=2)), last
    )
