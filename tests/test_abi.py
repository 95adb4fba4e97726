"""The libraries link to what they may: torch's stable C interface, and kernels of one ISA level to themselves."""

from __future__ import annotations

import re
import shutil
import subprocess
from pathlib import Path

import pytest

from evoprune_kernels import _ext

ROOT = Path(__file__).parent.parent
NM = shutil.which("nm")
pytestmark = [
    pytest.mark.skipif(NM is None, reason="nm (binutils) is not installed"),
    pytest.mark.skipif(not _ext.cpu_loaded(), reason=f"_cpu.so: {_ext.reasons.get('_cpu')}"),
]

#: levels whose instructions not every CPU has: none of their symbols may be shared
LEVELS = ("avx2", "avx512", "avx512vnni")


def symbols(library: Path, *options: str) -> list[tuple[str, str]]:
    """``(type, demangled name)`` of every symbol that ``nm`` lists."""
    listed = subprocess.run(
        [str(NM), "--demangle", "--format=posix", *options, str(library)],
        capture_output=True,
        text=True,
        check=True,
    )
    entry = re.compile(r"(.+?) ([A-Za-z])[ 0-9a-f]*$")
    found = [entry.match(line) for line in listed.stdout.splitlines()]
    return [(match[2], match[1]) for match in found if match]


@pytest.mark.parametrize("name", ["_cpu.so", "_cuda.so"])
def test_no_unstable_torch_symbols(name):
    library = _ext.LIBRARY_DIR / name
    if not library.exists():
        pytest.skip(f"{name} is not built: there was no compiler for it")
    undefined = [name for _, name in symbols(library, "--dynamic", "--undefined-only")]
    assert any(name.startswith("aoti_torch_") for name in undefined), "nm found no stable symbols"
    unstable = [name for name in undefined if re.search(r"\b(at|c10|caffe2|torch)::", name)]
    assert unstable == []


def test_native_knows_no_torch():
    (library,) = _ext.LIBRARY_DIR.glob("_native*.so")
    undefined = [name for _, name in symbols(library, "--dynamic", "--undefined-only")]
    assert [name for name in undefined if re.search(r"torch|\b(at|c10)::", name)] == []


def test_libraries_export_no_kernels():
    """Two extensions in one process cannot take each other's functions."""
    for library in _ext.LIBRARY_DIR.glob("_c*.so"):
        exported = symbols(library, "--dynamic", "--defined-only")
        assert [name for _, name in exported if "evoprune::" in name] == []


def test_the_cuda_library_brings_its_runtime():
    """A wheel runs on every torch: the CUDA runtime is inside, the driver's functions are found at run time."""
    library = _ext.LIBRARY_DIR / "_cuda.so"
    if not library.exists():
        pytest.skip("_cuda.so is not built: no nvcc")
    undefined = [name for _, name in symbols(library, "--dynamic", "--undefined-only")]
    assert [name for name in undefined if re.match(r"_*cu(da)?[A-Z]", name)] == []


def objects(level: str) -> list[Path]:
    """The newest object of every kernel file at one level, from the build folders of this checkout."""
    newest = []
    for source in (ROOT / "csrc" / "cpu").glob("*.cpp"):
        built = [
            path
            for path in (ROOT / "build").glob(f"**/{level}/{source.stem}.o")
            if "sanitize" not in path.parts and "emulate" not in path.parts
        ]
        if built:
            newest.append(max(built, key=lambda path: path.stat().st_mtime))
    return newest


def shared_symbols(listed: list[tuple[str, str]], level: str) -> list[str]:
    """Symbols that the linker could merge with those of another level."""
    merged = [name for kind, name in listed if kind in "TWVuDBRi" or kind in "vw"]
    return [name for name in merged if f"evoprune::{level}::" not in name]


@pytest.mark.parametrize("level", LEVELS)
def test_a_level_defines_only_its_own_symbols(level):
    """Else the linker may keep the AVX-512 body of a shared function, and an older CPU stops at it."""
    built = objects(level)
    if not built:
        pytest.skip("no objects in build/: the library was not built in this checkout")
    shared = {path.name: shared_symbols(symbols(path, "--defined-only"), level) for path in built}
    assert {name: found for name, found in shared.items() if found} == {}


def test_the_test_sees_a_shared_symbol():
    listed = [
        ("T", "evoprune::avx2::f()"),
        ("W", "std::vector<int>::push_back(int)"),
        ("t", "local"),
    ]
    assert shared_symbols(listed, "avx2") == ["std::vector<int>::push_back(int)"]
