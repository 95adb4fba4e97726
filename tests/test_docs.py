"""What the documentation shows is run: every docstring example, every Python block of the README."""

from __future__ import annotations

import doctest
import importlib
import pkgutil
import re
from pathlib import Path

import pytest

import evoprune_kernels

ROOT = Path(__file__).parent.parent
README = ROOT / "README.md"
#: a block that cannot be run here says why in the line before it
NOT_RUN = re.compile(r"<!-- not run: .+ -->\s*$")


def modules() -> list[str]:
    """Every module of the package; importing ``__main__`` runs nothing."""
    found = pkgutil.walk_packages(evoprune_kernels.__path__, "evoprune_kernels.")
    names = ["evoprune_kernels", *(module.name for module in found)]
    return [name for name in names if not name.endswith(("._native", "._cpu", "._cuda"))]


@pytest.mark.parametrize("name", modules())
def test_docstring_examples(name):
    results = doctest.testmod(importlib.import_module(name), optionflags=doctest.ELLIPSIS)
    assert results.failed == 0, f"{results.failed} of {results.attempted} examples of {name} fail"


@pytest.mark.parametrize("name", modules())
def test_everything_public_has_a_docstring(name):
    module = importlib.import_module(name)
    assert module.__doc__, f"{name} has no docstring"
    for public in getattr(module, "__all__", []):
        thing = getattr(module, public)
        if callable(thing):
            assert thing.__doc__, f"{name}.{public} has no docstring"


def readme_blocks() -> list[tuple[int, str]]:
    """``(line, code)`` of every Python block of the README that is to be run."""
    text = README.read_text()
    blocks = []
    for found in re.finditer(r"^```python\n(.*?)^```", text, re.M | re.S):
        if not NOT_RUN.search(text[: found.start()]):
            blocks.append((text.count("\n", 0, found.start()) + 2, found[1]))
    return blocks


def test_readme_blocks(tmp_path, monkeypatch):
    """In order, in one namespace, as a reader would type them."""
    monkeypatch.chdir(tmp_path)
    namespace: dict[str, object] = {"__name__": "readme"}
    for line, code in readme_blocks():
        exec(compile("\n" * (line - 1) + code, str(README), "exec"), namespace)
