"""Loads the native libraries once and keeps the reason when one is missing."""

from __future__ import annotations

import importlib
import os
from pathlib import Path
from types import ModuleType

import torch

_DIR = Path(__file__).parent
#: library name -> why it is not loaded; empty when everything is
reasons: dict[str, str] = {}
#: the pybind11 module, or None
native: ModuleType | None = None


def load() -> None:
    """Load ``_native`` and ``_cpu.so``. Called by ``ops`` after the schemas are defined."""
    global native
    if os.environ.get("EVOPRUNE_DISABLE_NATIVE") == "1":
        reasons.update(_native="EVOPRUNE_DISABLE_NATIVE=1", _cpu="EVOPRUNE_DISABLE_NATIVE=1")
        return
    try:
        native = importlib.import_module("evoprune_kernels._native")
    except ImportError as error:
        reasons["_native"] = f"not built or not loadable: {error}"
    library = _DIR / "_cpu.so"
    if not library.exists():
        reasons["_cpu"] = "not built (no C++ compiler at install time, or EVOPRUNE_BUILD=none)"
        return
    try:
        torch.ops.load_library(str(library))
    except (OSError, RuntimeError) as error:
        reasons["_cpu"] = f"{library.name} did not load: {error}"
        return
    if level := os.environ.get("EVOPRUNE_ISA"):
        set_isa_level(level)


def cpu_loaded() -> bool:
    """Whether ``_cpu.so`` is loaded."""
    return "_cpu" not in reasons


def isa_level() -> str:
    """The ISA level in use: ``avx512``, ``avx2``, ``baseline``, or ``none`` without ``_cpu.so``."""
    return torch.ops.evoprune_raw.isa_level() if cpu_loaded() else "none"


def isa_levels() -> list[str]:
    """The levels that run on this machine, best first."""
    return torch.ops.evoprune_raw.isa_levels().split(",") if cpu_loaded() else []


def set_isa_level(level: str) -> None:
    """Use another ISA level from now on. Raises ``RuntimeError`` if it cannot run here."""
    if not cpu_loaded():
        raise RuntimeError(f"cannot set ISA level {level!r}: _cpu.so: {reasons['_cpu']}")
    torch.ops.evoprune_raw.set_isa_level(level)
