"""Who may import whom, read from the sources: the arrows of the design cannot turn around unnoticed."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
PACKAGE = "evoprune_kernels"

#: top to bottom: a component may import components of lower layers, and itself
LAYERS = [
    {"__main__", "bench"},
    {"__init__"},
    {"convert", "inference"},
    {"methods"},
    {"nn", "optim"},
    {"selection"},
    {"ops"},
    {"formats", "importance"},
    {"_check", "_ext", "_select", "measure"},
]
RANK = {component: -rank for rank, layer in enumerate(LAYERS) for component in layer}
#: where the environment may be read
READS_ENVIRONMENT = {"_ext.py", "_select.py"}


def python_files() -> Iterator[tuple[Path, str]]:
    """Every module of the package and of bench, with its component."""
    for path in sorted((ROOT / PACKAGE).rglob("*.py")):
        yield path, path.relative_to(ROOT / PACKAGE).parts[0].removesuffix(".py")
    for path in sorted((ROOT / "bench").rglob("*.py")):
        yield path, "bench"


def imported_components(tree: ast.AST) -> Iterator[tuple[int, str]]:
    """``(line, component)`` of every import of the package, wherever in the file it stands."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom) and node.level:
            names = [f"{PACKAGE}.<relative import>"]  # one way to write an import
        elif isinstance(node, ast.ImportFrom):
            names = [node.module or ""]
            if node.module == PACKAGE:
                names = [f"{PACKAGE}.{alias.name}" for alias in node.names]
        else:
            continue
        for name in names:
            root, *rest = name.split(".")
            if root in (PACKAGE, "bench"):
                yield node.lineno, "bench" if root == "bench" else rest[0] if rest else "__init__"


def wrong_arrows(component: str, source: str) -> list[str]:
    """What is wrong with the imports of a module of ``component``."""
    if component not in RANK:
        return [f"component {component!r} is in no layer: add it to LAYERS"]
    wrong = []
    for line, imported in imported_components(ast.parse(source)):
        if imported not in RANK:
            wrong.append(f"line {line}: imports {imported!r}, which is in no layer")
        elif imported != component and RANK[imported] >= RANK[component]:
            wrong.append(f"line {line}: {component} may not import {imported}")
    return wrong


@pytest.mark.parametrize(
    "path, component", [pytest.param(p, c, id=str(p.relative_to(ROOT))) for p, c in python_files()]
)
def test_arrows(path, component):
    assert wrong_arrows(component, path.read_text()) == []


@pytest.mark.parametrize(
    "component, source, found",
    [
        ("formats", "from evoprune_kernels import ops", "formats may not import ops"),
        ("formats", "from evoprune_kernels.importance import RULES", "may not import importance"),
        ("ops", "def f():\n    import evoprune_kernels.nn.linear", "line 2: ops may not import nn"),
        ("nn", "import evoprune_kernels as ek", "nn may not import __init__"),
        ("nn", "from . import linear", "imports '<relative import>'"),
        ("optim", "from bench import gate", "optim may not import bench"),
        ("selection", "from evoprune_kernels.optim import AdamW", "selection may not import optim"),
        ("ops", "from evoprune_kernels.selection import erk", "ops may not import selection"),
        ("methods", "from evoprune_kernels.selection import erk", None),
        ("shiny", "", "add it to LAYERS"),
        ("nn", "from evoprune_kernels.ops import nm_linear\nimport torch", None),
        ("ops", "from evoprune_kernels.ops._op import define", None),
        ("bench", "import evoprune_kernels as ek\nfrom bench import gate", None),
    ],
)
def test_the_test_sees_a_wrong_arrow(component, source, found):
    wrong = wrong_arrows(component, source)
    assert (wrong == []) if found is None else any(found in message for message in wrong)


def test_the_environment_is_read_in_two_files():
    readers = {
        path.name
        for path in (ROOT / PACKAGE).rglob("*.py")
        if re.search(r"\bos\.(environ|getenv)", path.read_text())
    }
    assert readers <= READS_ENVIRONMENT


def test_triton_is_imported_in_its_own_files_only():
    for path in (ROOT / PACKAGE).rglob("*.py"):
        if path.name != "triton_impl.py":
            assert not re.search(r"^\s*(import|from) triton", path.read_text(), re.M), path


# ---- C++ ----
TORCH_FREE = ("cpu", "cuda", "native", "importance", "select", "core")
CPP = (".cpp", ".h", ".cu", ".cuh")


def cpp_files(*folders: str) -> list[Path]:
    files = [p for f in folders for p in (ROOT / "csrc" / f).rglob("*") if p.suffix in CPP]
    return sorted(files)


def test_kernels_are_torch_free():
    for path in cpp_files(*TORCH_FREE):
        assert not re.search(
            r'#include\s*[<"](torch|ATen|c10|pybind11|Python)', path.read_text()
        ), path


def test_only_the_kernels_of_one_level_know_it():
    """A file that is compiled once may not depend on the ISA level."""
    for path in cpp_files("ops", "native"):
        assert "cpu/simd.h" not in path.read_text(), path


def test_intrinsics_are_in_simd_headers_only():
    for path in cpp_files(""):
        if path.name not in ("simd.h", "simd_window.h", "simd_bytes.h", "simde_gaps.h"):
            assert not re.search(r"\b_mm\d*_|immintrin|arm_neon", path.read_text()), path


def test_inline_ptx_is_in_one_file_only():
    for path in cpp_files("cuda", "core", "importance", "select"):
        if path.name != "ptx.cuh":
            assert not re.search(r"\basm\b", path.read_text()), path


def test_kernels_use_no_standard_containers():
    """They are compiled once per ISA level; a template of std:: could be merged across levels by the linker."""
    banned = (
        r"#include <(vector|string|map|unordered_map|deque|list|set|functional|algorithm|memory)>"
    )
    for path in cpp_files("cpu", "importance", "select"):
        assert not re.search(banned, path.read_text()), path
