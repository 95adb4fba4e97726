"""Files and functions stay small enough to be read at once."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
FILE_BUDGET = {".py": 400, ".cpp": 500, ".h": 250, ".cu": 500, ".cuh": 250}
CPP = (".cpp", ".h", ".cu", ".cuh")
PYTHON_FUNCTION, CPP_FUNCTION, CPP_KERNEL = 60, 60, 150  # lines, without the docstring


def files(*suffixes: str) -> list[Path]:
    folders = ["evoprune_kernels", "bench", "tests", "csrc"]
    found = [path for folder in folders for path in (ROOT / folder).rglob("*")]
    return sorted(p for p in [*found, ROOT / "setup.py"] if p.suffix in suffixes)


def python_functions(source: str) -> Iterator[tuple[str, int]]:
    """``(name, lines)`` of every function, its docstring not counted."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            lines = node.end_lineno - node.lineno + 1
            first = node.body[0]
            if isinstance(first, ast.Expr) and isinstance(first.value, ast.Constant):
                lines -= first.end_lineno - first.lineno + 1
            yield node.name, lines


def cpp_functions(source: str) -> Iterator[tuple[str, int]]:
    """``(first line, lines)`` of every function at namespace level, as clang-format lays them out."""
    start = None
    for number, line in enumerate(source.splitlines()):
        opens = line.endswith("{") and not line.startswith(
            (" ", "namespace", "struct", "class", "extern")
        )
        if start is None and opens and "(" in line and not line.startswith(("const ", "#")):
            start = (number, line)
        elif line.startswith("}") and start is not None:
            yield start[1], number - start[0] + 1
            start = None


def path_id(path: Path) -> str:
    return str(path.relative_to(ROOT))


@pytest.mark.parametrize("path", files(".py", *CPP), ids=path_id)
def test_file_length(path):
    lines, budget = len(path.read_text().splitlines()), FILE_BUDGET[path.suffix]
    assert lines <= budget, f"{lines} lines, the budget is {budget}: split it by meaning"


@pytest.mark.parametrize("path", files(".py"), ids=path_id)
def test_python_function_length(path):
    functions = dict(python_functions(path.read_text()))
    assert {name: lines for name, lines in functions.items() if lines > PYTHON_FUNCTION} == {}


@pytest.mark.parametrize("path", files(*CPP), ids=path_id)
def test_cpp_function_length(path):
    budget = CPP_KERNEL if path.parent.name in ("cpu", "cuda") else CPP_FUNCTION
    functions = dict(cpp_functions(path.read_text()))
    assert {name: lines for name, lines in functions.items() if lines > budget} == {}


def test_the_test_counts():
    source = 'def f():\n    """a\n    b\n    """\n    x = 1\n    return x\n'
    assert dict(python_functions(source)) == {"f": 3}
    source = "namespace a {\n\nvoid f(int x) {\n  if (x) {\n  }\n}\n\n}\n"
    assert list(cpp_functions(source)) == [("void f(int x) {", 4)]


def test_no_line_is_a_leftover():
    """No commented-out Python, no TODO without a condition."""
    for path in files(".py", *CPP):
        if path.name != Path(__file__).name:
            assert not re.search(
                r"\b(TODO|FIXME|XXX)\b(?!.*\b(when|until|once)\b)", path.read_text()
            ), path
