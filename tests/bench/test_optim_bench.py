"""The sections of ``bench optim``: what their records hold, and that a figure without a probe says so."""

from __future__ import annotations

import json

import pytest

from bench import optim, optim_sections, readme
from bench.__main__ import main


def test_quick_writes_every_section_and_the_readme_renders_it(tmp_path):
    target = tmp_path / "optim.json"
    assert main(["optim", "--quick", "--no-gate", "--rounds", "5", "--json", str(target)]) == 0
    record = json.loads(target.read_text())
    results = record["results"]
    assert results["contenders"][optim.TORCH + " (A/A)"]["over_torch_fused"]["median"] > 0
    assert results["targets"][0]["target"] == 1.2
    assert len(results["others"]) == 3 and results["two_threads"]["threads"] == 2
    sections = [results["small"], results["two_threads"], *results["others"]]
    assert all(set(s["control"]) == {"median", "p20", "p80"} for s in sections)
    for row in results["small"]["rows"].values():
        assert row["ns_per_parameter"]["small"] > 0 and row["seconds"]["big"]["min"] > 0
    text = readme.optim(record)
    assert "20 tensors of 1k to 10k elements" in text and "ours over torch fused" in text


def test_bandwidth_is_a_share_of_what_the_probe_measured():
    calls = []

    def measured(elements: int) -> float:
        calls.append(elements)
        return 1e12

    found = optim_sections.bandwidth(lambda: None, 1000, measured, rounds=2)
    assert calls == [1000] * 2 and found["bytes_a_parameter"] == 37
    share = found["step_bytes_a_second"] / 1e12
    assert found["share"]["median"] == pytest.approx(share)


def test_without_a_probe_the_line_says_so(monkeypatch):
    found = optim_sections.bandwidth(lambda: None, 1000, None, rounds=2)
    assert found["share"] is None and found["mix_bytes_a_second"] is None
    monkeypatch.setattr(optim_sections.roofline, "available", lambda: False)
    assert optim_sections.probe() is None


def test_an_older_record_renders_without_the_sections():
    assert optim.section_lines({"contenders": {}}) == []
