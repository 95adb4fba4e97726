"""The benchmarks refuse to report where tests fail, check before they time, and write JSON with its origin."""

from __future__ import annotations

import json
import math
from types import SimpleNamespace

import pytest
import torch

from bench import gate, linear, peers, readme, report
from bench.__main__ import COMMANDS, main


@pytest.fixture
def failing_test(tmp_path, monkeypatch):
    monkeypatch.setattr(gate, "ROOT", tmp_path)
    (tmp_path / "test_broken.py").write_text("def test_sum():\n    assert 1 + 1 == 3\n")
    return "test_broken.py"


def test_gate_refuses_when_a_test_fails(failing_test):
    with pytest.raises(gate.GateError, match=r"the tests fail.*test_broken.py(?s:.*)1 failed"):
        gate.check([failing_test])


def test_gate_refuses_missing_tests():
    with pytest.raises(gate.GateError, match=r"no such tests: tests/ops/test_nothing\.py"):
        gate.check(["tests/ops/test_nothing.py"])


def test_gate_passes_and_tells_what_ran(tmp_path, monkeypatch):
    monkeypatch.setattr(gate, "ROOT", tmp_path)
    (tmp_path / "test_fine.py").write_text("def test_sum():\n    assert 1 + 1 == 2\n")
    passed = gate.check(["test_fine.py"])
    assert passed.status == "passed" and "1 passed" in passed.summary


def test_skipping_the_gate_is_marked():
    assert "no-gate" in gate.check(["tests/ops/test_nothing.py"], skip=True).status


def test_a_failing_gate_stops_the_command(failing_test, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(linear, "TESTS", dict.fromkeys(linear.TESTS, failing_test))
    target = tmp_path / "linear.json"
    assert main(["linear", "--quick", "--json", str(target)]) == 1
    assert "refused: the tests fail" in capsys.readouterr().err
    assert not target.exists()


def test_linear_quick_writes_every_contender(tmp_path):
    target = tmp_path / "linear.json"
    patterns = ["2:4"]
    arguments = ["linear", "--quick", "--no-gate", "--json", str(target), "--patterns"]
    for pattern in patterns:
        assert main([*arguments, pattern]) == 0
        record = json.loads(target.read_text())
        assert set(report.REQUIRED) <= set(record)
        assert record["label"].startswith("quick") and "no-gate" in record["gate"]["status"]
        assert record["threads"] == 1 and record["machine"]["cpu"]
        cells = record["results"]["cells"]
        assert [(c["tokens"], c["weights"]) for c in cells] == [(1, "cold"), (32, "hot")]
        for cell in cells:
            assert cell["density"] == pytest.approx(0.5, abs=0.01)
            names = {"dense", "dense (A/A)", "ours", "torch CSR"}
            assert names <= set(cell["contenders"])
            assert cell["contenders"]["dense"]["speedup"]["median"] == 1.0
            assert all(c["seconds"]["min"] > 0 for c in cell["contenders"].values())


def test_linear_checks_before_it_times(monkeypatch):
    args = SimpleNamespace(
        dtype="float32", no_peers=True, threads=1, rounds=1, seconds=1.0, quick=True
    )
    monkeypatch.setattr(linear, "kernel", lambda packed, tensors: lambda x: x.new_zeros(len(x), 64))
    with pytest.raises(AssertionError, match=r"error .* against fp64 exceeds"):
        linear.measure_cell(linear.Cell((64, 48), "2:4", 2, "hot", 1), args)


@pytest.mark.parametrize("text", ["2:4@50", "block:16x16", "unstructured@100", "unstructured"])
def test_patterns_that_contradict_themselves(text):
    with pytest.raises(ValueError, match=text.partition("@")[0]):
        linear.split_pattern(text)


def test_few_tokens_are_cold_unless_asked():
    args = SimpleNamespace(
        shapes=["1024x1024"], tokens=[1, 128], patterns=["2:4"], cold_mb=64, hot=False
    )
    found = [(c.tokens, c.weights, c.layers) for c in linear.cells(args)]
    assert found == [(1, "cold", 16), (128, "hot", 1)]
    args.hot = True
    assert (1, "hot", 1) in [(c.tokens, c.weights, c.layers) for c in linear.cells(args)]


def test_peers_compute_the_same_product():
    weight = torch.randn(32, 48).where(torch.rand(32, 48) < 0.2, 0.0)
    x = torch.randn(5, 48)
    for peer in (peers.torch_csr(weight, x), peers.torch_bsr(weight, x, 16, 16)):
        assert peer is not None
        torch.testing.assert_close(peer.rows(), x @ weight.T)
        torch.testing.assert_close(peer.clone().rows(), x @ weight.T)
        assert peer.clone().weight.values().data_ptr() != peer.weight.values().data_ptr()
    assert peers.torch_bsr(weight, x, 16, 1) is None


def test_report_refuses_nan_and_missing_facts(tmp_path):
    record = report.build("x", {"value": math.nan}, gate=gate.check([], skip=True), threads=1)
    with pytest.raises(ValueError, match="not JSON compliant"):
        report.write(record, tmp_path / "x.json")
    del record["machine"]
    with pytest.raises(ValueError, match=r"lacks \['machine'\]"):
        report.write(record, tmp_path / "x.json")
    assert not (tmp_path / "x.json").exists()


def test_table_aligns_numbers_to_the_right():
    lines = report.table(("name", "time"), [["a", "1.5"], ["long", "12"]]).splitlines()
    assert lines == ["| name | time |", "| ---- | ---: |", "| a    |  1.5 |", "| long |   12 |"]


@pytest.mark.parametrize(
    ("seconds", "text"), [(2.5, "2.5 s"), (0.00123, "1.23 ms"), (4.5e-6, "4.5 us"), (3e-9, "3 ns")]
)
def test_duration(seconds, text):
    assert report.duration(seconds) == text


def test_readme_shows_what_the_results_say():
    text = readme.README.read_text()
    assert readme.render(text) == text, "run `python -m bench readme`"


def test_readme_markers_without_a_table_are_an_error():
    with pytest.raises(ValueError, match="README marker 'nothing'"):
        readme.render("<!-- begin nothing -->\n<!-- end nothing -->\n")


def test_every_command_has_a_module():
    assert set(COMMANDS) >= {"linear", "optim", "model", "demo", "digits", "readme"}


def test_the_record_names_the_command_that_ran():
    assert report.command(["x/bench/__main__.py", "linear", "--quick"]) == (
        "python -m bench linear --quick"
    )
    assert (
        report.command(["x/bench/demo.py", "--text", "a b"]) == "python -m bench.demo --text 'a b'"
    )


def test_a_bar_in_a_cell_does_not_split_it():
    assert report.table(["a"], [["|w|"]]).splitlines()[-1] == r"| \|w\| |"
