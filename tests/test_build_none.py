"""Without native code everything works on the references, and says why."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parent.parent

PROGRAM = """
import warnings
with warnings.catch_warnings(record=True) as caught:
    warnings.simplefilter("always")
    from evoprune_kernels import _ext, formats, ops
import torch
print("warned:", [str(w.message) for w in caught if "C++ kernels" in str(w.message)])
print("reasons:", _ext.reasons)
print("levels:", _ext.isa_level(), _ext.isa_levels())
weight = torch.tensor([[0.0, 5.0, 0.0, 6.0, 7.0, 8.0, 0.0, 0.0]])
mask = ops.select_nm(weight.abs(), 2, 4)
assert mask.tolist() == [[False, True, False, True, True, True, False, False]], mask
packed = formats.pack(weight, "2:4", mask=mask)
assert torch.equal(packed.unpack(), weight)
x = torch.randn(3, 8, requires_grad=True)
y = ops.linear(x, packed)
assert torch.allclose(y, torch.nn.functional.linear(x, weight))
y.sum().backward()
assert torch.allclose(x.grad, weight.sum(0).expand(3, 8))
try:
    ops.select_nm(weight, 2, 4, impl="cpu")
except RuntimeError as error:
    print("insisted:", error)
"""


def run(*command: str, **environment: str) -> subprocess.CompletedProcess[str]:
    clean = {key: value for key, value in os.environ.items() if not key.startswith("EVOPRUNE_")}
    return subprocess.run(
        [sys.executable, *command],
        env=clean | {"PYTHONPATH": str(ROOT)} | environment,
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=120,
    )


def test_disabled_native_code():
    done = run("-c", PROGRAM, EVOPRUNE_DISABLE_NATIVE="1")
    assert done.returncode == 0, done.stderr
    assert "insisted: select_nm: impl='cpu' cannot run: EVOPRUNE_DISABLE_NATIVE=1" in done.stdout
    assert "levels: none []" in done.stdout
    assert "warned: []" in done.stdout  # it was asked for


def test_missing_native_code_warns_once_with_the_reason(tmp_path):
    done = run("-c", PROGRAM, EVOPRUNE_LIBRARY_DIR=str(tmp_path))
    assert done.returncode == 0, done.stderr
    reason = "not built (no C++ compiler when the package was installed, or EVOPRUNE_BUILD=none)"
    assert f"warned: ['no C++ kernels, plain torch runs instead: {reason}']" in done.stdout
    assert f"insisted: select_nm: impl='cpu' cannot run: {reason}" in done.stdout


def test_broken_native_code_is_a_reason_too(tmp_path):
    (tmp_path / "_cpu.so").write_bytes(b"not a library")
    done = run("-c", PROGRAM, EVOPRUNE_LIBRARY_DIR=str(tmp_path))
    assert done.returncode == 0, done.stderr
    assert "did not load" in done.stdout


def build(folder: Path, **environment: str) -> subprocess.CompletedProcess[str]:
    paths = ("--build-lib", str(folder / "lib"), "--build-temp", str(folder / "temp"))
    return run("setup.py", "--quiet", "build_ext", *paths, **environment)


def test_build_none(tmp_path):
    done = build(tmp_path, EVOPRUNE_BUILD="none")
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines() == [
        "evoprune_kernels: built without native code, references only: EVOPRUNE_BUILD=none"
    ]


def test_no_compiler_is_one_line(tmp_path):
    environment = {"PATH": str(tmp_path), "CXX": ""}
    done = build(tmp_path, **environment)
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines() == [
        "evoprune_kernels: built without native code, references only: "
        "no C++ compiler found (install g++, or set CXX)"
    ]
    done = build(tmp_path, EVOPRUNE_BUILD="cpu", **environment)
    assert done.returncode != 0
    assert "EVOPRUNE_BUILD=cpu: no C++ compiler found" in done.stderr


def test_unknown_build_mode(tmp_path):
    done = build(tmp_path, EVOPRUNE_BUILD="gpu")
    assert done.returncode != 0
    assert "EVOPRUNE_BUILD: expected auto, cpu, cuda or none, got 'gpu'" in done.stderr
