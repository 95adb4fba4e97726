"""The native build under test is the one that the command asked for, and it says what it is."""

from __future__ import annotations

import os

import pytest

from evoprune_kernels import _ext


def test_the_expected_build_is_loaded():
    expected = os.environ.get("EVOPRUNE_EXPECT")  # set by `make sanitize` and `make emulate`
    if expected is None:
        pytest.skip("EVOPRUNE_EXPECT is not set: an ordinary run")
    assert not {"_cpu", "_native"} & set(_ext.reasons)
    info = _ext.native.build_info()
    assert info["sanitized"] == (expected == "sanitized")
    assert info["emulated_avx512"] == (expected == "emulated")
    if expected == "emulated":
        assert _ext.isa_levels()[:2] == ["avx512vnni", "avx512"]


def test_levels_end_with_baseline_and_the_best_is_in_use():
    if not _ext.cpu_loaded():
        pytest.skip(f"_cpu.so: {_ext.reasons['_cpu']}")
    assert _ext.isa_levels()[-1] == "baseline"
    assert _ext.isa_level() == os.environ.get("EVOPRUNE_ISA", _ext.isa_levels()[0])


def test_unknown_level_is_an_error():
    with pytest.raises(RuntimeError, match="sse9"):
        _ext.set_isa_level("sse9")
