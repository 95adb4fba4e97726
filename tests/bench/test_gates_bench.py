"""``bench gates``: what a quick run writes, and that wrong results are refused."""

from __future__ import annotations

import json

import pytest
import torch

from bench import gate, gates
from bench.__main__ import main


def test_quick_writes_every_op_of_every_layout(tmp_path, capsys):
    target = tmp_path / "gates.json"
    assert main(["gates", "--quick", "--no-gate", "--open", "0.5", "--json", str(target)]) == 0
    record = json.loads(target.read_text())
    rows = record["results"]["ops"]
    assert record["label"].startswith("quick") and record["results"]["open"] == 0.5
    assert [(row["layout"], row["op"]) for row in rows] == [
        (layout, op) for _ in gates.QUICK for layout in gates.LAYOUTS for op in gates.OPS
    ]
    for row in rows:
        assert set(row["seconds"]) == {"torch", "torch (A/A)", "ours"}
        assert row["speedup"]["median"] > 0 and row["control"]["p80"] > 0
    assert "ResNet-20 2x16x8x8 " in capsys.readouterr().out


def test_the_layouts_are_those_that_are_named():
    for layout, form in gates.LAYOUTS.items():
        problem = gates.Problem(gates.QUICK[0], layout, 1.0)
        assert problem.x.is_contiguous(memory_format=form) and problem.gates.eq(1).all()


@pytest.mark.parametrize("name", gates.OPS)
def test_wrong_results_are_refused(name):
    calls = gates.OPS[name](gates.Problem(gates.QUICK[0], "contiguous", 0.5))
    gates.compare(name, calls)

    def off():
        found = calls[gates.OURS]()
        return found + 1 if isinstance(found, torch.Tensor) else (found[0] + 1, *found[1:])

    with pytest.raises(gate.GateError, match=f"{name}: error"):
        gates.compare(name, {**calls, gates.OURS: off})
