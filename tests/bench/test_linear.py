"""The linear-layer benchmark: its cells, its checks, its record, what resuming keeps, and what is made of a record."""

from __future__ import annotations

import dataclasses
import json
from types import SimpleNamespace

import pytest
import torch

from bench import linear, report, targets
from bench.__main__ import main
from bench.linear import cells, ours, plot, records, scaling, tables, timing
from bench.peers import ADAPTERS
from bench.peers.adapter import each


def test_a_failing_gate_stops_the_command(failing_test, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(linear, "COMMON_TESTS", failing_test)
    monkeypatch.setattr(linear, "TESTS", dict.fromkeys(linear.TESTS, failing_test))
    target = tmp_path / "linear.json"
    assert main(["linear", "--quick", "--json", str(target)]) == 1
    assert "refused: the tests fail" in capsys.readouterr().err
    assert not target.exists()


# ---- cells ----
@pytest.mark.parametrize("text", ["2:4@50", "block:16x16", "unstructured@100", "unstructured"])
def test_patterns_that_contradict_themselves(text):
    with pytest.raises(ValueError, match=text.partition("@")[0]):
        cells.split_pattern(text)


@pytest.mark.parametrize("text", ["2:4+int7", "2:4+"])
def test_stored_as_nothing_known(text):
    with pytest.raises(ValueError, match=r"expected nothing or one of \+bf16, \+int8"):
        ours.stored_of(text)


def test_patterns_name_density_and_storage():
    assert cells.split_pattern("block:16x16@75+int8")[1] == 0.25
    assert ours.stored_of("block:16x16@75+int8") is ours.STORED["int8"]
    assert ours.stored_of("2:4").precision == "fp32"


def test_few_tokens_are_cold_unless_asked():
    args = SimpleNamespace(
        shapes=["1024x1024"], tokens=[1, 128], patterns=["2:4"], cold_mb=64, hot=False
    )
    found = [(c.tokens, c.weights, c.layers) for group in cells.groups(args) for c in group]
    assert found == [(1, "cold", 16), (128, "hot", 1)]
    args.hot = True
    assert (1, "hot", 1) in [(c.tokens, c.weights, c.layers) for g in cells.groups(args) for c in g]


def test_the_grid_is_that_of_the_targets():
    table = targets.load()
    assert set(table.shapes) <= set(cells.GRID_SHAPES)
    assert {pattern for row in table.rows for pattern in row.patterns} == set(cells.GRID_PATTERNS)
    args = SimpleNamespace(
        shapes=cells.GRID_SHAPES,
        tokens=cells.TOKENS,
        patterns=cells.GRID_PATTERNS,
        cold_mb=cells.GRID_COLD_MB,
        hot=False,
    )
    grid = [cell for group in cells.groups(args) for cell in group]
    assert len({cell.key for cell in grid}) == len(grid) == 5 * 4 * len(cells.GRID_PATTERNS)
    cold = [cell for cell in grid if cell.weights == "cold"]
    assert all(4 * c.shape[0] * c.shape[1] * c.layers > 1 << 30 for c in cold)


# ---- measuring ----
def quick(tmp_path, *options):
    target = tmp_path / "linear.json"
    assert main(["linear", "--quick", "--no-gate", "--json", str(target), *options]) == 0
    return json.loads(target.read_text())


@pytest.mark.parametrize("pattern", ["2:4", "2:4+bf16", "2:4+int8", "2:4+w8a8", "block:16x16@50"])
def test_quick_writes_every_contender(tmp_path, pattern):
    record = quick(tmp_path, "--patterns", pattern)
    assert set(report.REQUIRED) <= set(record)
    assert record["label"].startswith("quick") and "no-gate" in record["gate"]["status"]
    assert record["threads"] == 1 and record["machine"]["cpu"]
    peers = record["results"]["peers"]
    assert set(peers) == set(ADAPTERS)
    found = record["results"]["cells"]
    assert [(c["tokens"], c["weights"]) for c in found] == [(1, "cold"), (32, "hot")]
    for cell in found:
        assert cell["density"] == pytest.approx(0.5, abs=0.01)
        names = {"dense", "dense (A/A)", "ours", "torch CSR"}
        assert names <= set(cell["contenders"])
        assert set(cell["contenders"]) - names <= {
            n for n, r in peers.items() if r.startswith("present")
        }
        assert ("torch bf16 dense" in cell["contenders"]) == pattern.endswith("bf16")
        assert cell["contenders"]["dense"]["speedup"]["median"] == 1.0
        assert all(c["seconds"]["min"] > 0 for c in cell["contenders"].values())
        assert all(0 <= c["error"] < 0.06 for c in cell["contenders"].values())
        assert cell["commit"] and cell["date"] and cell["left_out"] == {}
        if record["results"]["roofline"]:
            assert cell["roof"]["fraction"] > 0 and cell["work"]["bytes"] > 0


def test_narrow_weights_are_gated_by_their_own_tests():
    assert linear.tests_of(["2:4", "2:4v16"]) == [
        "tests/ops/test_linear.py",
        "tests/ops/test_nm_linear.py",
    ]
    assert linear.tests_of(["2:4+int8"])[-1] == linear.STORED_TESTS
    assert linear.tests_of(["2:4+w8a8"])[-1] == linear.W8A8_TESTS


def test_it_checks_before_it_times(tmp_path, monkeypatch):
    zeros = lambda *_, **__: lambda x: x.new_zeros(len(x), 64)  # noqa: E731
    monkeypatch.setattr(ours, "linear_op", zeros)
    with pytest.raises(AssertionError, match=r"error .* against fp64 exceeds"):
        quick(tmp_path, "--no-peers")


def test_a_stated_error_is_held_too():
    weight, x = torch.randn(8, 16), torch.randn(4, 16)
    y = x @ weight.T
    assert timing.check(y, weight, x, None) < 1e-5
    assert 0.005 < timing.check(y * 1.01, weight, x, 0.02) < 0.015
    with pytest.raises(AssertionError, match="exceeds 2"):
        timing.check(y * 1.05, weight, x, 0.02)


def test_a_peer_without_memory_is_left_out_with_that_reason(tmp_path, monkeypatch):
    monkeypatch.setattr(timing, "free_bytes", lambda: 0)
    cell = quick(tmp_path, "--patterns", "2:4")["results"]["cells"][0]
    assert cell["left_out"]["torch CSR"] == "no memory left for its stack"
    assert "torch CSR" not in cell["contenders"]


def test_a_peer_that_fails_or_is_wrong_is_left_out_with_that_reason(tmp_path, monkeypatch):
    def fails(job):
        raise RuntimeError("no such instruction\nand more")

    wrong = lambda job: each([lambda: job.x.new_ones(len(job.x), 64)])  # noqa: E731
    for name, build in (("torch CSR", fails), ("torch int8 dynamic", wrong)):
        changed = dataclasses.replace(ADAPTERS[name], build=build)
        monkeypatch.setitem(ADAPTERS, name, changed)
    cell = quick(tmp_path, "--patterns", "2:4")["results"]["cells"][0]
    assert cell["left_out"]["torch CSR"] == "RuntimeError: no such instruction"
    assert "exceeds 6.000e-02" in cell["left_out"]["torch int8 dynamic"]
    assert not {"torch CSR", "torch int8 dynamic"} & set(cell["contenders"])
    listed = tables.left_out([cell, cell])
    assert ["torch CSR", "in 2 cells: RuntimeError: no such instruction"] in listed


def test_free_memory_is_read_from_the_system(tmp_path):
    (tmp_path / "meminfo").write_text("MemTotal: 8 kB\nMemAvailable:    4 kB\n")
    assert timing.free_bytes(tmp_path / "meminfo") == 4096
    assert timing.free_bytes(tmp_path / "nothing") > 1 << 50


def test_scaling_has_one_and_two_threads_in_one_run(tmp_path):
    record = quick(tmp_path, "--scaling", "--patterns", "2:4")
    assert record["threads"] == 2 and record["results"]["target"] == 1.8
    (cell,) = record["results"]["cells"]
    assert {"ours, 1 thread", "ours, 2 threads", "dense, 2 threads"} <= set(cell["seconds"])
    assert cell["ours"]["median"] > 0 and isinstance(cell["holds"], bool)
    assert len(scaling.row(cell)) == len(scaling.HEADER)


# ---- resuming ----
@pytest.fixture
def interrupted(tmp_path, monkeypatch):
    """A record of the first cell of two, labelled as a measurement."""
    record = quick(tmp_path, "--no-peers")
    record["label"] = "measured"
    record["results"]["cells"] = record["results"]["cells"][:1]
    target = tmp_path / "linear.json"
    monkeypatch.setattr(report, "unchanged_since", lambda commit, paths: commit != "old")
    target.write_text(json.dumps(record))
    return target, record


def kept(target, threads=1, seconds=4.0):
    return len(records.still_good(records.previous(target, threads=threads), seconds=seconds))


def test_resuming_keeps_what_was_measured_as_now(interrupted):
    target, record = interrupted
    assert kept(target) == 1
    assert kept(target, threads=2) == 0
    assert kept(target, seconds=1.0) == 0
    assert kept(target.with_name("nothing.json")) == 0
    for change in (
        {"machine": {**record["machine"], "cpu": "another"}},
        {"label": "quick"},
        {"results": {"cells": [{**record["results"]["cells"][0], "commit": "old"}]}},
    ):
        target.write_text(json.dumps(record | change))
        assert kept(target) == 0


def test_resuming_measures_only_the_rest(interrupted, tmp_path, capsys):
    _, before = interrupted
    after = quick(tmp_path, "--no-peers", "--resume")
    assert "1 cells to measure, 1 kept" in capsys.readouterr().out
    old, new = before["results"]["cells"][0], after["results"]["cells"][0]
    assert new["contenders"] == old["contenders"]
    assert [c["tokens"] for c in after["results"]["cells"]] == [1, 32]


def test_what_was_written_before_a_stop_is_there(tmp_path, monkeypatch):
    real = timing.measure_group

    def stop_after_one(group):
        yield next(real(group))
        raise KeyboardInterrupt

    monkeypatch.setattr(timing, "measure_group", stop_after_one)
    target = tmp_path / "linear.json"
    with pytest.raises(KeyboardInterrupt):
        main(["linear", "--quick", "--no-gate", "--no-peers", "--json", str(target)])
    assert len(json.loads(target.read_text())["results"]["cells"]) == 1


def test_a_changed_tree_is_not_the_same():
    for commit in ("", "unknown", "abc1234+changes", "no-such-commit"):
        assert not report.unchanged_since(commit, ["csrc"])


def test_records_of_isa_levels_do_not_meet(monkeypatch):
    monkeypatch.setattr(records.measure, "machine_info", lambda: {"isa": "avx2"})
    name = "bench/results/linear-avx2.json"
    assert str(records.default_path(grid=True, threads=1)).endswith(name)
    assert records.default_path(grid=True, threads=2).name == "linear-avx2-2threads.json"
    assert records.default_path(grid=False, threads=1).parent.name == "out"


# ---- what is made of a record ----
def entry(shape, pattern, tokens, ours, peers=None, roof=None):
    speeds = {"dense": 1.0, "dense (A/A)": 1.0, "ours": ours, **(peers or {})}
    contenders = {
        name: {"seconds": {"median": 1e-3 / s}, "speedup": {"median": s, "p20": s, "p80": s}}
        for name, s in speeds.items()
    }
    weights = "cold" if tokens <= 16 else "hot"
    cell = {"shape": shape, "pattern": pattern, "tokens": tokens, "weights": weights, "roof": roof}
    return cell | {
        "contenders": contenders,
        "density": 0.5,
        "layers": 1,
        "too_slow": {"MKL CSR": 0.2},
    }


def made_up(*entries):
    results = {"cells": list(entries), "peers": {"torch CSR": "present", "XNNPACK": "no package"}}
    machine = {"cpu": "a CPU", "isa": "avx2", "torch": "2.13"}
    head = {"command": "python -m bench linear --grid", "label": "measured", "commit": "abc"}
    return head | {"date": "today", "machine": machine, "threads": 1, "results": results}


ROOF = {"fraction": 0.5, "speedup_at_roof": 1.8, "bound": "memory", "seconds": 1e-4}


def test_the_compact_table_shows_the_lowest_ratio_and_marks_it():
    record = made_up(
        entry("3072x768", "2:4", 1, 2.5),
        entry("4096x4096", "2:4", 1, 1.7, {"torch int8 dynamic": 3.0}, ROOF),
        entry("768x768", "2:4", 1, 0.5),  # not one of the targets' shapes
        entry("3072x768", "block:16x16@75", 128, 3.7, {"MKL CSR": 4.0, "torch CSR": 1.0}),
        entry("3072x768", "block:32x32@75", 128, 4.5),
        entry("3072x768", "2:4+int8", 512, 2.0, {"torch int8 dynamic": 2.5}),
    )
    text = tables.summary(record)
    rows = {
        line.split("|")[1].strip(): line.split("|")[2:6]
        for line in text.splitlines()
        if "|" in line
    }
    rows = {name: [cell.strip() for cell in found] for name, found in rows.items()}
    assert rows["2:4"] == ["1.70 ti", "-", "-", "-"]
    assert rows["blocks 16 to 64, 75 %"] == ["-", "-", "3.70 p", "-"]
    assert rows["2:4, int8 weights"] == ["-", "-", "-", "2.00 pi"]
    assert "unstructured, 95 %" not in rows
    assert (
        "- 2:4, 1 cold: 1.70 (4096x4096, 2:4), target 1.9; the machine's limits do not allow more"
        in text
    )
    assert "MKL CSR 4.00 over ours 3.70 (3072x768, block:16x16@75); no limits were measured" in text
    assert "torch int8 dynamic 2.50 over ours 2.00" in text


def test_a_reason_that_was_found_out_is_shown(monkeypatch):
    table = targets.load()
    reasons = {"avx2": {"2:4 @ 1": "one load port is busy with columns"}}
    known = targets.Targets(table.shapes, table.columns, table.rows, table.scaling, reasons)
    text = tables.summary(made_up(entry("3072x768", "2:4", 1, 1.2)), known)
    assert "target 1.9; one load port is busy with columns" in text


def test_narrow_peers_are_not_rivals_of_float32():
    peers = {"torch int8 dynamic": 9.0, "torch bf16 dense": 5.0, "torch CSR": 0.5}
    assert tables.best_peer(entry("8x8", "2:4", 1, 2.0, peers)) == ("torch CSR", 0.5)
    assert tables.best_peer(entry("8x8", "2:4+bf16", 1, 2.0, peers)) == ("torch bf16 dense", 5.0)
    assert tables.best_peer(entry("8x8", "2:4+int8", 1, 2.0, peers)) == ("torch int8 dynamic", 9.0)
    assert tables.best_peer(entry("8x8", "2:4", 1, 2.0)) is None


def test_the_page_has_every_cell_every_peer_and_every_absence():
    record = made_up(
        entry("3072x768", "2:4", 1, 2.5, {"torch CSR": 3.0}, ROOF),
        entry("64x64", "unstructured@50", 512, 0.9),
    )
    text = tables.page(record, report.source(record))
    assert "| 3072x768 |" in text and " 64x64 |" in text and "unstructured@50" in text
    assert "2.50 (2.50-2.50) p" in text and "3.00 torch CSR" in text
    assert "50% memory" in text and "0.20 once" in text
    assert "no package" in text and "python -m bench linear --grid" in text


def test_the_picture_compares_with_the_better_of_dense_and_peers(tmp_path):
    record = made_up(
        entry("3072x768", "2:4", 1, 2.0, {"torch CSR": 4.0}),
        entry("3072x768", "2:4", 128, 2.0, {"torch CSR": 0.5}),
    )
    found = plot.ratios(record)
    assert found[(1, "cold")] == {("2:4", "3072x768"): 0.5}
    assert found[(128, "hot")] == {("2:4", "3072x768"): 2.0}
    target = plot.draw(record, tmp_path / "map.png")
    assert target.read_bytes().startswith(b"\x89PNG")


def test_the_committed_pages_are_made_of_the_committed_records():
    for path in sorted(report.RESULTS.glob("linear-avx*.json")):
        if path.with_suffix(".md").exists():
            record = json.loads(path.read_text())
            text = tables.page(record, report.source(record))
            assert path.with_suffix(".md").read_text() == text, "run `python -m bench readme`"


# ---- targets ----
def test_targets_are_read():
    table = targets.load()
    first = table.rows[0]
    assert (first.name, first.targets) == ("2:4", (1.9, 2.5, 1.55, 1.45))
    assert [str(column) for column in table.columns] == ["1 cold", "16 cold", "128", "512"]
    assert (
        next(row for row in table.rows if row.name == "unstructured, 80 %").targets == (None,) * 4
    )


@pytest.mark.parametrize(
    ("line", "message"), [("[1.0]", "expected 2 targets, got 1"), ("[1.0, -2.0]", "above 0")]
)
def test_targets_that_do_not_fit_are_an_error(tmp_path, line, message):
    path = tmp_path / "targets.toml"
    columns = 'columns = [{ tokens = 1, weights = "cold" }, { tokens = 2, weights = "hot" }]'
    row = f'[[row]]\nname = "2:4"\npatterns = ["2:4"]\ntargets = {line}'
    path.write_text(f"shapes = []\nscaling = 1.8\n{columns}\n{row}\n")
    with pytest.raises(ValueError, match=message):
        targets.load(path)
