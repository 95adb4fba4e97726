"""The benchmarks refuse to report where tests fail, check before they time, and write JSON with its origin."""

from __future__ import annotations

import math

import pytest

from bench import gate, readme, report
from bench.__main__ import COMMANDS


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
