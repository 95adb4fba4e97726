"""The ladder of the papers' methods: a whole quick run, resumption, verdicts by literal values."""

from __future__ import annotations

import json

import pytest

from bench.__main__ import main
from bench.methods import ladder, summary, unfinished
from bench.methods.plans import PLANS
from evoprune_kernels.methods import PRESETS

ARMS = ["evolution_threshold_2022", "magnitude_global", "random"]


def quick(path, *more):
    arguments = ["methods", "--task", "digits", "--quick", "--no-gate", "--json", str(path)]
    assert main([*arguments, "--arms", *ARMS, *more]) == 0
    return json.loads(path.read_text())


def test_a_quick_run_writes_record_table_and_picture(tmp_path):
    record = quick(tmp_path / "digits.json")
    cells = record["results"]["cells"]
    assert record["label"].startswith("quick") and record["gate"]["status"].startswith("not run")
    for arm in ARMS:
        assert cells[f"{arm}|0.8|0"]["sparsity"] == pytest.approx(0.8, abs=1e-3)
    assert cells["dense|0.0|0"]["value"] > 0.3  # chance: 0.1; one epoch
    assert 0 <= cells["pgd:dense|0.1|0"]["value"] <= cells["noise:dense|0|0"]["value"]
    page = (tmp_path / "digits.md").read_text()
    assert "evolution_threshold_2022 at 80 %" in page and "not known" in page
    assert (tmp_path / "digits.png").read_bytes()[:4] == b"\x89PNG"
    assert not list(tmp_path.glob("*.part"))


def test_a_cut_off_run_keeps_its_cells(tmp_path, monkeypatch):
    path = tmp_path / "digits.json"
    real, done = ladder.Ladder.measure, []

    def cut(self, arm, seed, point):
        if len(done) == 2:
            raise KeyboardInterrupt
        done.append(arm)
        return real(self, arm, seed, point)

    monkeypatch.setattr(ladder.Ladder, "measure", cut)
    with pytest.raises(KeyboardInterrupt):
        quick(path)
    kept = json.loads(unfinished.path_of(path).read_text())
    assert [key for key in kept if key.startswith("evolution")] == [
        "evolution_threshold_2022|0.8|0"
    ]
    monkeypatch.setattr(ladder.Ladder, "measure", real)
    record = quick(path, "--resume")
    key = "evolution_threshold_2022|0.8|0"
    assert record["results"]["cells"][key] == kept[key]  # the seconds, too: it was not run again


def test_dense_training_is_shared_by_all_that_can(tmp_path, monkeypatch):
    """One dense training for each average that an arm needs; arms without one take what is there."""
    trained = []
    real = ladder.methods.run

    def spy(method, *args, dense, **kwargs):
        if dense is None:
            trained.append(method)
        return real(method, *args, dense=dense, **kwargs)

    monkeypatch.setattr(ladder.methods, "run", spy)
    path = tmp_path / "digits.json"
    arguments = ["methods", "--task", "digits", "--quick", "--no-gate", "--json", str(path)]
    arms = [
        "evolution_llm_2024",
        "evolution_threshold_2022",
        "smart_bezier_2022",
        "random",
        "wanda",
    ]
    assert main([*arguments, "--arms", *arms]) == 0
    assert trained == ["evolution_threshold_2022", "evolution_llm_2024"]


def told(record):
    metric = record["results"]["metric"]
    return [summary.sentence(verdict, metric) for verdict in summary.verdicts(record)]


def test_verdicts_are_about_the_spread():
    values = {
        "evolution_threshold_2022": {"0.9": [0.95, 0.96], "0.97": [0.80, 0.90]},
        "magnitude_std": {"0.9": [0.90, 0.91], "0.97": [0.84, 0.85]},
        "random": {"0.9": [0.5, 0.5], "0.97": [0.2, 0.2]},
        "platon": {"0.9": [0.99, 0.99]},
    }
    cells = {
        f"{arm}|{point}|{seed}": {"value": value, "sparsity": float(point)}
        for arm, points in values.items()
        for point, found in points.items()
        for seed, value in enumerate(found)
    }
    record = {"results": {"metric": "accuracy", "cells": cells}}
    first, second = told(record)
    assert first == (
        "evolution_threshold_2022 at 90 %: +5.00 points against magnitude_std (spread 1.00):"
        " better than its best control"
    )
    assert second.endswith("+0.50 points against magnitude_std (spread 10.00): within the spread")
    over = {k: {**c, "sparsity": 0.98} if "_2022|0.9|" in k else c for k, c in cells.items()}
    line = told({"results": {"metric": "accuracy", "cells": over}})[0]
    assert line.endswith("not comparable, its masks reach 98 %")
    worse = {k: {**c, "value": 1 - c["value"]} for k, c in cells.items()}
    lines = told({"results": {"metric": "accuracy", "cells": worse}})
    assert "against random" in lines[0] and lines[0].endswith("WORSE than its best control")
    losses = told({"results": {"metric": "loss", "cells": worse}})
    assert losses[0] == first.replace("5.00 points", "0.05 nats").replace("1.00", "0.01")


@pytest.mark.parametrize("task", sorted(PLANS))
def test_plans_name_methods_that_exist(task):
    plan = PLANS[task]
    assert set(plan.arms) | set(plan.nm) | set(plan.robust_arms) | set(plan.options) <= set(PRESETS)
    assert all(0 < s < 1 for s in plan.sparsities) and plan.finetune + plan.finetune_steps > 0
