"""The probes compute what they say, at every ISA level, and the roofline is made of positive finite numbers."""

from __future__ import annotations

import math

import pytest
import torch

from bench import roofline
from evoprune_kernels import _ext

needs_cpu = pytest.mark.skipif(not _ext.cpu_loaded(), reason=f"_cpu.so: {_ext.reasons.get('_cpu')}")
RAW = torch.ops.evoprune_raw
SPAN = roofline.SPAN


@needs_cpu
@pytest.mark.parametrize("ahead, streams", roofline.WAYS)
def test_read_sums_the_whole_buffer(ahead, streams, isa):
    data = torch.randint(0, 4, (5 * SPAN,)).float()  # exact in float32
    assert RAW.probe_read(data, 2, ahead, streams) == data.double().sum().item()


@needs_cpu
def test_fma_counts_its_operations(isa):
    once = RAW.probe_fma(1, 10)
    assert once > 0 and RAW.probe_fma(3, 20) == 6 * once


@needs_cpu
@pytest.mark.parametrize("ahead", [0, 128])
def test_stream_does_what_its_header_says(ahead, isa):
    w, g, m, v, s = (torch.randn(2 * SPAN) for _ in range(5))
    mask = torch.rand(2 * SPAN) < 0.5
    expected_w = (w + 0.5 * g) * mask
    expected = [expected_w, m + 0.5 * g, v + 0.5 * g, s + 0.5 * expected_w]
    RAW.probe_stream(w, g, m, v, s, mask, 0.5, ahead)
    for found, truth in zip((w, m, v, s), expected, strict=True):
        torch.testing.assert_close(found, truth)


@needs_cpu
def test_probes_name_what_they_are_given():
    with pytest.raises(RuntimeError, match=f"multiple of {SPAN} elements, got 100"):
        RAW.probe_read(torch.ones(100), 1, 0, 1)
    with pytest.raises(RuntimeError, match="expected repeats >= 1, got 0"):
        RAW.probe_read(torch.ones(SPAN), 0, 0, 1)
    with pytest.raises(RuntimeError, match="expected streams of 1 to 4, got 5"):
        RAW.probe_read(torch.ones(SPAN), 1, 0, 5)
    with pytest.raises(RuntimeError, match="expected units and iterations >= 1, got 1 and 0"):
        RAW.probe_fma(1, 0)
    five = [torch.ones(SPAN) for _ in range(5)]
    with pytest.raises(RuntimeError, match=f"expected mask = {SPAN}"):
        RAW.probe_stream(*five, torch.ones(2 * SPAN, dtype=torch.bool), 0.1, 0)
    with pytest.raises(RuntimeError, match="mask has dtype Float, expected Bool"):
        RAW.probe_stream(*five, torch.ones(SPAN), 0.1, 0)


@needs_cpu
def test_every_limit_is_positive_and_finite():
    found = roofline.measure_roofline(quick=True).to_dict()
    assert all(math.isfinite(value) and value > 0 for value in found.values())
    assert "GB/s from DRAM" in roofline.lines(found)


def test_without_the_library_there_is_no_roofline(monkeypatch):
    monkeypatch.setattr(roofline, "available", lambda: False)
    assert roofline.measure_roofline() is None


def made_up(**changes):
    known = {"threads": 1, "fma": 100.0, "read_l2": 80.0, "read_llc": 40.0, "read_dram": 10.0}
    sizes = {"stream": 20.0, "l2_bytes": 1000, "llc_bytes": 10_000, "dram_bytes": 10**6}
    return roofline.Roofline(**{**known, **sizes, **changes})


def test_the_roof_is_the_slower_of_memory_and_arithmetic():
    roof = made_up()
    assert roof.seconds(800, 100.0, cold=False) == 10.0  # 800 bytes from L2
    assert roof.seconds(800, 100.0, cold=True) == 80.0
    assert roof.seconds(8000, 100.0, cold=False) == 200.0
    assert roof.seconds(80_000, 100.0, cold=False) == 8000.0
    assert roof.seconds(800, 5000.0, cold=True) == 80.0
    assert roof.seconds(800, 50_000.0, cold=True) == 500.0


def test_the_higher_of_two_measurements_is_the_limit():
    merged = made_up(fma=90.0).merge(made_up(read_dram=5.0))
    assert (merged.fma, merged.read_dram, merged.threads) == (100.0, 10.0, 1)


def test_the_size_of_l2_is_read_from_the_system(tmp_path):
    for name, level, size in (("index0", "1", "48K"), ("index2", "2", "2048K")):
        folder = tmp_path / name
        folder.mkdir()
        (folder / "level").write_text(level)
        (folder / "size").write_text(size)
    assert roofline.l2_bytes(tmp_path) == 2 << 20
    assert roofline.l2_bytes(tmp_path / "nothing") == roofline.DEFAULT_L2_BYTES
