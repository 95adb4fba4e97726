"""``bench ssprop``: its FLOPs by hand, its check, and what a quick run writes."""

from __future__ import annotations

import json

import pytest
import torch
from torch import nn

from bench import gate, ssprop
from bench.__main__ import main
from evoprune_kernels.nn import SSPropConv2d, SSPropLinear


def test_quick_writes_time_and_flops_of_every_layer(tmp_path, capsys):
    target = tmp_path / "ssprop.json"
    assert main(["ssprop", "--quick", "--no-gate", "--json", str(target)]) == 0
    record = json.loads(target.read_text())
    rows = record["results"]["layers"]
    assert record["label"].startswith("quick") and record["threads"] == 1 and len(rows) == 3
    for row in rows:
        assert [o["kept"] for o in row["ours"]] == [1.0, 0.6, 0.2]
        assert set(row["seconds"]) == {"dense", "dense (A/A)", ssprop.MASKED} | {
            ssprop.ours(p) for p in ssprop.SHARES
        }
        assert all(o["speedup"]["median"] > 0 for o in row["ours"]) and row["control"]["p80"] > 0
        assert row["ours"][0]["flops_saved"] == 0 and row["ours"][0]["reason"]
        assert row["ours"][2]["flops_saved"] > row["ours"][1]["flops_saved"]
    assert [o["channels"] for o in rows[0]["ours"]] == [16, 9, 3]
    assert "ResNet-20 3x3 16->16, 2x8x8" in capsys.readouterr().out


def test_flops_by_hand():
    dense, grad = nn.Conv2d(6, 10, (3, 2), groups=2), torch.zeros(4, 10, 5, 7)
    assert ssprop.backward_flops(dense, grad) == 4 * (4 * 5 * 7 * 10) * 3 * 3 * 2
    layer = SSPropLinear(8, 10, kept=0.2)
    grad = torch.zeros(3, 10)
    full = ssprop.backward_flops(layer, grad)
    assert full == 4 * 3 * 10 * 8
    assert ssprop.sparse_flops(full, layer, grad) == full / 5 + 60
    masked = SSPropConv2d(6, 9, 3, groups=3, kept=0.2)
    assert ssprop.sparse_flops(1000, masked, torch.zeros(1, 9, 1, 1)) == 1000


def test_wrong_gradients_are_refused():
    dense = nn.Linear(4, 10)
    layer = SSPropLinear.from_linear(dense, kept=0.2)
    x, grad = torch.randn(3, 4, requires_grad=True), torch.randn(3, 10)
    ssprop.check(dense, layer, x, grad)
    layer.random = True  # other channels than those of the largest gradient
    with pytest.raises(gate.GateError, match="against a masked dense dY"):
        ssprop.check(dense, layer, x, grad)
