"""The data of the nm cost model: what the header holds is what was measured."""

from __future__ import annotations

import json

import pytest

from bench import costs, report
from bench.__main__ import main
from evoprune_kernels import _ext


def test_header_holds_the_measured_costs():
    text = costs.HEADER.read_text()
    record = json.loads((report.RESULTS / "costs.json").read_text())
    for level, found in record["results"]["levels"].items():
        assert costs.entry(level, found) in text, f"run `python -m bench costs --write`: {level}"


def test_write_replaces_only_measured_levels(tmp_path, monkeypatch):
    copy = tmp_path / "nm_costs.h"
    copy.write_text(costs.HEADER.read_text())
    monkeypatch.setattr(costs, "HEADER", copy)
    before = copy.read_text().splitlines()
    found = {"rows": [1.0, 2.0, 3.0, 4.0], "panels": [5.0, 6.0, 7.0]}
    costs.write_header({"avx2": found})
    changed = [(a, b) for a, b in zip(before, copy.read_text().splitlines(), strict=True) if a != b]
    assert len(changed) == 1 and changed[0][0].startswith("    {8, ")
    assert changed[0][1] == "    {8, {1.00, 2.00, 3.00, 4.00}, {5.00, 6.00, 7.00}},"


@pytest.mark.skipif(not _ext.cpu_loaded(), reason="no native library")
def test_quick_writes_a_record(tmp_path):
    target = tmp_path / "costs.json"
    assert main(["costs", "--quick", "--no-gate", "--json", str(target)]) == 0
    levels = json.loads(target.read_text())["results"]["levels"]
    assert set(levels) == set(_ext.isa_levels()) & set(costs.LANES)
    for found in levels.values():
        assert len(found["rows"]) == 4 and len(found["panels"]) == 3
