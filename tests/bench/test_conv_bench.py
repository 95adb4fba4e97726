"""``bench conv``: what a quick run writes, and its checks."""

from __future__ import annotations

import json

import pytest
import torch
from torch import nn

from bench import conv, gate
from bench.__main__ import main


def test_quick_writes_every_contender_of_every_layer(tmp_path, capsys):
    target = tmp_path / "conv.json"
    assert main(["conv", "--quick", "--no-gate", "--json", str(target)]) == 0
    record = json.loads(target.read_text())
    rows = record["results"]["layers"]
    assert record["label"].startswith("quick") and record["threads"] == 1 and len(rows) == 2
    for row in rows:
        names = {kind(order) for kind in (conv.dense, conv.frozen) for order in conv.ORDERS}
        names |= {f"{conv.dense(order)} (A/A)" for order in conv.ORDERS}
        names |= {conv.ours(name, order) for name in conv.SPARSE for order in conv.ORDERS}
        assert set(row["seconds"]) == names
        medians = {name: row["seconds"][name]["median"] for name in names}
        assert medians[row["best_dense"]] == min(medians[conv.dense(o)] for o in conv.ORDERS)
        assert medians[row["best_frozen"]] == min(medians[conv.frozen(o)] for o in conv.ORDERS)
        kernels = {o["pattern"]: o["kernel"].partition("_")[0] for o in row["ours"]}
        assert kernels == {n: "nm" if n.startswith("2:4") else "block" for n in conv.SPARSE}
        assert all(o["speedup"]["median"] > 0 and o["over_frozen"]["p80"] > 0 for o in row["ours"])
    assert "small 3x3 16->32, 1x8x8" in capsys.readouterr().out


def test_a_layer_that_is_dense_or_wrong_is_refused(monkeypatch):
    x = torch.randn(1, 16, 5, 5)
    with torch.no_grad():
        layer = conv.sparse_of(nn.Conv2d(16, 16, 3), "2:4", None)
        conv.check(layer, x)
        monkeypatch.setattr(
            type(layer), "_run", lambda self, plan, x, bias: torch.zeros(1, 16, 3, 3)
        )
        with pytest.raises(gate.GateError, match="at most 1e-05"):
            conv.check(layer, x)
        layer.stay_dense("for this test")
        with pytest.raises(gate.GateError, match="is dense: for this test"):
            conv.check(layer, x)
