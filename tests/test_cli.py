"""The command line: what it prints, what it writes, and that a user's error is one line."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest
import torch
from safetensors.torch import load_file, save_file

import evoprune_kernels as ek
from evoprune_kernels import _ext, _select, ops
from evoprune_kernels.__main__ import info, main


@pytest.fixture
def checkpoint(tmp_path):
    path = tmp_path / "model.safetensors"
    tensors = {
        "a.weight": torch.randn(32, 48),
        "a.bias": torch.randn(32),
        "embedding.weight": torch.randn(10, 16),
    }
    save_file(tensors, path)
    return path, tensors


def test_info_runs_as_a_module():
    done = subprocess.run(
        [sys.executable, "-m", "evoprune_kernels", "info"],
        capture_output=True,
        text=True,
        check=True,
    )
    assert f"evoprune_kernels {ek.__version__}" in done.stdout
    assert "ISA level:" in done.stdout
    assert "no CUDA C++ kernel (" in done.stdout or not _ext.reasons.get("_cuda")
    assert all(name in done.stdout for name in ops.OPS)


def test_info_without_native_code_says_why():
    done = subprocess.run(
        [sys.executable, "-m", "evoprune_kernels", "info", "--json"],
        capture_output=True,
        text=True,
        check=True,
        env={"EVOPRUNE_DISABLE_NATIVE": "1", "PATH": "/usr/bin:/bin"},
    )
    facts = json.loads(done.stdout)
    assert facts["libraries"]["_cpu"] == {"loaded": False, "reason": "EVOPRUNE_DISABLE_NATIVE=1"}
    assert facts["isa"] == {"in_use": "none", "available": []}
    reason = "EVOPRUNE_DISABLE_NATIVE=1"
    select = facts["ops"]["select_nm"]
    assert select == {
        "chosen": "reference",
        "others": {"cpu": reason},
        "cuda": reason,
        "triton": reason,
    }


def test_info_shows_what_was_asked_for(monkeypatch):
    monkeypatch.setattr(_select, "FORCED", {"select_nm": "reference"})
    select = info()["ops"]["select_nm"]
    assert select["chosen"] == "reference"
    assert select["others"]["cpu"] == "EVOPRUNE_IMPL asks for reference"


def test_convert_and_back(checkpoint, tmp_path, capsys):
    path, tensors = checkpoint
    packed, back = tmp_path / "packed.safetensors", tmp_path / "back.safetensors"
    assert main(["convert", str(path), str(packed), "--pattern", "2:4", "--exclude", "embed*"]) == 0
    out = capsys.readouterr().out
    assert "a.weight: 32x48 -> 2:4, density 0.50" in out
    assert "a.bias: dense: 1 dimensions" in out and "embedding.weight: dense: --exclude" in out
    assert packed.stat().st_size < path.stat().st_size
    assert main(["convert", str(packed), str(back), "--unpack"]) == 0
    found = load_file(back)
    assert set(found) == set(tensors)
    mask = ops.select_nm(tensors["a.weight"].abs(), 2, 4)
    assert torch.equal(found["a.weight"], tensors["a.weight"] * mask)
    assert torch.equal(found["a.bias"], tensors["a.bias"])
    assert torch.equal(found["embedding.weight"], tensors["embedding.weight"])


@pytest.mark.parametrize("pattern", ["block:16x16", "unstructured"])
def test_convert_by_sparsity(checkpoint, tmp_path, capsys, pattern):
    path, _ = checkpoint
    target = tmp_path / "packed.safetensors"
    arguments = ["convert", str(path), str(target), "--pattern", pattern, "--sparsity", "0.5"]
    assert main([*arguments, "--filter", "a.*"]) == 0
    assert f"a.weight: 32x48 -> {pattern}, density 0.50" in capsys.readouterr().out


def error_of(arguments, capsys):
    assert main([str(a) for a in arguments]) == 1
    captured = capsys.readouterr()
    assert "Traceback" not in captured.err
    return captured.err


def test_convert_errors_are_one_line(checkpoint, tmp_path, capsys):
    path, _ = checkpoint
    target = tmp_path / "out.safetensors"
    assert "7:4" in error_of(["convert", path, target, "--pattern", "7:4"], capsys)
    assert "--pattern or --unpack" in error_of(["convert", path, target], capsys)
    assert "another file" in error_of(["convert", path, path, "--pattern", "2:4"], capsys)
    assert "not written by this package" in error_of(["convert", path, target, "--unpack"], capsys)
    missing = tmp_path / "missing.safetensors"
    assert "missing.safetensors" in error_of(
        ["convert", missing, target, "--pattern", "2:4"], capsys
    )
    none = ["convert", path, target, "--pattern", "2:4", "--filter", "nothing"]
    assert "no tensor of" in error_of(none, capsys)
    packed = tmp_path / "packed.safetensors"
    assert main(["convert", str(path), str(packed), "--pattern", "2:4"]) == 0
    capsys.readouterr()
    assert "packed already" in error_of(["convert", packed, target, "--pattern", "2:4"], capsys)
    (tmp_path / "broken.safetensors").write_bytes(b"\x00" * 20)
    assert error_of(
        ["convert", tmp_path / "broken.safetensors", target, "--pattern", "2:4"], capsys
    )
    assert not target.exists()


def test_convert_names_the_tensor(tmp_path, capsys):
    path, target = tmp_path / "a.safetensors", tmp_path / "b.safetensors"
    save_file({"layer.weight": torch.ones(16, 16)}, path)
    arguments = ["convert", path, target, "--pattern", "block:16x16", "--sparsity", "1.5"]
    assert "layer.weight" in error_of(arguments, capsys)


def test_bench_model_of_a_function(tmp_path, capsys, monkeypatch):
    (tmp_path / "my_models.py").write_text(
        "import torch\n"
        "def tiny():\n"
        "    model = torch.nn.Sequential(torch.nn.Linear(64, 64), torch.nn.ReLU(), torch.nn.Linear(64, 32))\n"
        "    return model, torch.randn(4, 64)\n"
        "def wrong():\n"
        "    return 3\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    target = tmp_path / "report.json"
    arguments = ["bench-model", "my_models:tiny", "--rounds", "3", "--json", str(target)]
    assert main(arguments) == 0
    assert "speed-up" in capsys.readouterr().out
    record = json.loads(target.read_text())
    assert record["threads"] == 1 and record["speedup"]["median"] > 0
    assert "return (model, example_inputs)" in error_of(["bench-model", "my_models:wrong"], capsys)
    assert "no function 'none'" in error_of(["bench-model", "my_models:none"], capsys)
    assert "MODULE:FUNCTION" in error_of(["bench-model", "nowhere"], capsys)


def test_bench_model_of_a_transformers_folder(tmp_path, capsys):
    transformers = pytest.importorskip("transformers")
    config = transformers.BertConfig(
        hidden_size=32,
        num_hidden_layers=1,
        num_attention_heads=2,
        intermediate_size=64,
        vocab_size=50,
    )
    config.save_pretrained(tmp_path)
    arguments = ["bench-model", str(tmp_path), "--rounds", "3", "--tokens", "8", "--batch", "2"]
    assert main(arguments) == 0
    out = capsys.readouterr().out
    assert "the weights are random" in out and "speed-up" in out
