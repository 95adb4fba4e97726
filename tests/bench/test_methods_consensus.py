"""The ResNet reproduction: a whole quick run on digits, resumption, latency, energy, verdicts by literal values."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest
import torch

from bench.__main__ import main
from bench.methods import consensus, consensus_data, consensus_energy, consensus_page, models
from evoprune_kernels.methods.presets import Result
from evoprune_kernels.nn import gate_model_

ARGUMENTS = ["methods", "--task", "consensus-digits", "--quick", "--no-gate", "--json"]


@pytest.fixture
def quick(tmp_path, monkeypatch):
    """One quick run with gates that close in an epoch of so few steps."""
    options = {**consensus.GATES, "budget": 100.0}
    arms = [
        replace(a, options=options) if a.name == "consensus_gates" else a for a in consensus.ARMS
    ]
    monkeypatch.setattr(consensus, "ARMS", tuple(arms))
    path = tmp_path / "digits.json"

    def go(*more):
        arms = ["dense", "consensus_gates", "random_gates", "ssprop_random"]
        assert main([*ARGUMENTS, str(path), "--arms", *arms, *more]) == 0
        return json.loads(path.read_text())

    return go


def test_a_quick_run_resumes_and_is_measured(quick, tmp_path, monkeypatch):
    fill, done = consensus.Cells.fill, []

    def cut(self, *arguments):
        if len(done) == 2:
            raise KeyboardInterrupt
        done.append(arguments)
        fill(self, *arguments)

    monkeypatch.setattr(consensus.Cells, "fill", cut)
    with pytest.raises(KeyboardInterrupt):
        quick()
    kept = json.loads((tmp_path / "digits.cells.part").read_text())
    assert list(kept) == ["dense|0.0|0", "consensus_gates|0.5|0"]
    monkeypatch.setattr(consensus.Cells, "fill", fill)
    record = quick("--resume")
    cells = record["results"]["cells"]
    assert list(cells) == [*kept, "random_gates|0.5|0", "ssprop_random|0.0|0"]
    assert cells["dense|0.0|0"] == kept["dense|0.0|0"]  # the seconds, too: it was not run again
    gates = cells["consensus_gates|0.5|0"]
    assert gates["sparsity"] > 0.1 and len(gates["inner"]) == 3
    assert gates["gated"] == pytest.approx(gates["value"], abs=0.005)
    assert not list(tmp_path.glob("*.part"))
    assert (tmp_path / "digits.png").read_bytes()[:4] == b"\x89PNG"
    page = (tmp_path / "digits.md").read_text()
    assert "consensus_gates 50%: " in page and "Not measured yet" in page
    measured = quick("--latency")
    assert measured["results"]["cells"] == cells
    rows = measured["results"]["latency"]["rows"]
    assert [(r["batch"], r["network"]) for r in rows] == [
        (b, n) for b in (1, 64) for n in ("dense", "consensus_gates 50%")
    ]
    assert "Quick: a test of the program" in (tmp_path / "digits.md").read_text()


def test_the_recorded_widths_rebuild_the_network():
    net = models.resnet(1, width=4, blocks=1, inner=[3, 1, 16])
    shapes = [tuple(p.shape) for n, p in net.named_parameters() if "conv" in n]
    assert shapes == [
        (3, 4, 3, 3), (4, 3, 3, 3), (1, 4, 3, 3), (8, 1, 3, 3), (16, 8, 3, 3), (16, 16, 3, 3),
    ]  # fmt: skip
    assert net(torch.zeros(2, 1, 8, 8)).shape == (2, 10)
    with pytest.raises(ValueError, match="expected 3 inner widths, got 2"):
        models.resnet(1, width=4, blocks=1, inner=[3, 1])


def test_resnet_20_has_the_papers_size():
    """He et al.: 0.27 million parameters with 3 input channels; shortcuts of 1x1 here add 3,072 weights and norms."""
    net = models.resnet(3)
    assert sum(p.numel() for p in net.parameters()) == 269_722 + 2_560 + 192
    assert len(gate_model_(net, "*.conv1").gated) == 9


def test_rapl_counters_are_read_and_may_go_over(tmp_path):
    assert consensus_energy.rapl(tmp_path / "nowhere")[0] == []
    for name, value in (("intel-rapl:0", 900), ("intel-rapl:0:0", 5)):
        (tmp_path / name).mkdir()
        (tmp_path / name / "energy_uj").write_text(f"{value}\n")
        (tmp_path / name / "max_energy_range_uj").write_text("999\n")
    counters, reason = consensus_energy.rapl(tmp_path)
    assert [path.parent.name for path, _ in counters] == ["intel-rapl:0"] and reason == ""

    def spend():
        counter = counters[0][0]
        counter.write_text(str((int(counter.read_text()) + 150) % 1000))

    assert consensus_energy.joules(counters, spend, 2) == pytest.approx(150e-6)


def cell(value, removed=0.0, **numbers):
    found = {"value": value, "sparsity": removed, "numbers": numbers, "cpu_seconds": 1.0}
    found["compaction"] = {"parameters": [100, 45], "flops": [100, 80]} if removed else {}
    return found | ({"gated": value} if removed else {})


def test_a_network_that_could_not_be_compacted_keeps_the_reason():
    task = consensus_data.load("consensus-digits", None)
    record = {
        "numbers": {},
        "details": {"compaction": "none: torch.fx cannot trace Odd"},
        "best_step": None,
        "job": {"options": {}},
    }
    made = consensus.cell_of(task, Result(task.make_model(0), {}, record))
    assert made["not_compacted"] == "none: torch.fx cannot trace Odd" and "gated" not in made
    cells = {"dense|0.0|0": cell(0.83), "consensus_gates|0.5|0": {**made, "cpu_seconds": 1.0}}
    assert "consensus_gates 50%" in consensus_page.results_table({"results": {"cells": cells}})


def test_targets_are_met_or_missed_in_words():
    good = {"static/accuracy": 0.8, "dynamic/accuracy": 0.8, "polarization": 0.0}
    bad = {"static/accuracy": 0.8, "dynamic/accuracy": 0.805, "polarization": 0.02}
    cells = {
        "dense|0.0|0": cell(0.83),
        "dense|0.0|1": cell(0.85),
        "consensus_gates|0.5|0": cell(0.82, 0.52, **good),
        "consensus_gates|0.5|1": cell(0.85, 0.51, **good),
        "consensus_gates_dynamic|0.5|0": cell(0.80, 0.49, **bad),
        "consensus_gates_dynamic|0.5|1": cell(0.84, 0.52, **bad),
        "random_gates|0.5|0": cell(0.80, 0.5),
        "random_gates|0.5|1": cell(0.80, 0.5),
    }
    record = {"results": {"cells": cells}}
    first, second = consensus_page.verdicts(record)
    assert first == (
        "consensus_gates 50%: met: 51.0 % of the connections removed at least (target 50 %); met: 0.50 points lost in"
        " the mean, 1.00 at most (target 1.0); met: polarization 0.0000 at most (target below 0.01); met: static and"
        " learned gates 0.00 points apart at most (target 0.1)."
    )
    assert second.count("MISSED") == 4 and "2.00 points lost in the mean, 3.00 at most" in second
    lines = consensus_page.controls(record)
    assert lines == [
        "consensus_gates 50% against random_gates 50%: +3.50 points (spread 3.00): better than its control.",
        "consensus_gates_dynamic 50% against random_gates 50%: +2.00 points (spread 4.00): within the spread.",
    ]
