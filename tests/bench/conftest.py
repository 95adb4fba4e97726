"""Fixtures for the tests of the benchmarks."""

from __future__ import annotations

import pytest

from bench import gate


@pytest.fixture
def failing_test(tmp_path, monkeypatch):
    """The path of a test that fails, from the root that the gate now believes in."""
    monkeypatch.setattr(gate, "ROOT", tmp_path)
    (tmp_path / "test_broken.py").write_text("def test_sum():\n    assert 1 + 1 == 3\n")
    return "test_broken.py"
