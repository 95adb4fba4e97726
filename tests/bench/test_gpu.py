"""``python -m bench gpu`` where no GPU is: it refuses, and its program runs on the references."""

from __future__ import annotations

import json

import pytest
import torch

from bench.__main__ import main
from bench.gpu import contenders, linear, step


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU: the command would run")
def test_without_a_gpu_it_refuses(capsys):
    assert main(["gpu"]) == 1
    assert "finds no GPU" in capsys.readouterr().err


def test_the_program_runs_on_references(tmp_path, capsys):
    out = tmp_path / "gpu.json"
    command = ["gpu", "--device", "cpu", "--quick", "--no-gate", "--seconds", "0.1"]
    assert main([*command, "--json", str(out)]) == 0
    record = json.loads(out.read_text())
    assert record["label"].startswith("quick")
    results = record["results"]
    assert {cell["pattern"] for cell in results["linear"]} == {"2:4", "block:64x64", "unstructured"}
    for cell in results["linear"]:
        assert {"dense cuBLAS", "ours"} <= set(cell["contenders"])
        assert cell["contenders"]["ours"]["over_dense"]["median"] > 0
    assert set(results["step"]["contenders"]) == set(step.BYTES)
    assert "time over torch" in capsys.readouterr().out


def test_a_wrong_contender_is_left_out_with_its_error():
    x, weight = torch.randn(4, 8), torch.randn(6, 8)
    truth = x.double() @ weight.double().t()
    makers = {
        "right": lambda: contenders.dense([weight]),
        "wrong": lambda: contenders.dense([2 * weight]),
        "broken": lambda: contenders.bsr([weight], 5),
    }
    right, left_out = contenders.build(makers, x, truth)
    assert set(right) == {"right"}
    assert left_out["wrong"].startswith("wrong by 1.0e+00")
    assert "Error" in left_out["broken"]


@pytest.mark.parametrize(
    "pattern, density", [("2:4", 0.5), ("block:32x32", 0.25), ("unstructured", 0.2)]
)
def test_a_pruned_weight_has_its_density(pattern, density):
    weight = linear.pruned((64, 128), pattern, density, torch.float32)
    assert float((weight != 0).float().mean()) == pytest.approx(density, abs=0.01)


def test_bitmasks_are_measured_at_few_tokens_only():
    assert {p[1] for p in linear.problems(False) if p[2] == "unstructured"} == {1, 16}
