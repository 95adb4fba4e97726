"""Loads the native libraries once, looks for Triton, and keeps the reason when one is missing.

``EVOPRUNE_LIBRARY_DIR`` loads them from another folder than the package's: a build with sanitizers, for example.
"""

from __future__ import annotations

import importlib.machinery
import importlib.util
import os
import sys
import warnings
from pathlib import Path
from types import ModuleType

import torch

#: where the libraries are loaded from
LIBRARY_DIR = Path(os.environ.get("EVOPRUNE_LIBRARY_DIR") or Path(__file__).parent)
NO_CUDA = "not built (no nvcc when the package was installed, or EVOPRUNE_BUILD=cpu)"
NOT_BUILT = "not built (no C++ compiler when the package was installed, or EVOPRUNE_BUILD=none)"
#: library name -> why it is not loaded; empty when everything is
reasons: dict[str, str] = {}
#: the pybind11 module, or None
native: ModuleType | None = None


def load() -> None:
    """Load ``_native``, ``_cpu.so`` and ``_cuda.so``. Called by ``ops`` after the schemas are defined."""
    global native
    if os.environ.get("EVOPRUNE_DISABLE_NATIVE") == "1":
        names = ("_native", "_cpu", "_cuda", "triton")
        reasons.update(dict.fromkeys(names, "EVOPRUNE_DISABLE_NATIVE=1"))
        return
    if importlib.util.find_spec("triton") is None:  # imported at the first launch
        reasons["triton"] = "not installed"
    native = _load_native()
    _load_library("_cpu", NOT_BUILT)
    if torch.version.cuda is None:
        reasons["_cuda"] = f"torch {torch.__version__} is built without CUDA"
    else:
        _load_library("_cuda", NO_CUDA)
    if "_cpu" in reasons:
        warnings.warn(f"no C++ kernels, plain torch runs instead: {reasons['_cpu']}", stacklevel=4)
    elif level := os.environ.get("EVOPRUNE_ISA"):
        set_isa_level(level)


def _load_native() -> ModuleType | None:
    name = "evoprune_kernels._native"
    spec = importlib.machinery.PathFinder.find_spec(name, [str(LIBRARY_DIR)])
    if spec is None or spec.loader is None:
        reasons["_native"] = NOT_BUILT
        return None
    try:
        module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
    except ImportError as error:
        reasons["_native"] = f"{spec.origin} did not load: {error}"
        return None
    sys.modules[name] = module
    return module


def _load_library(name: str, missing: str) -> None:
    library = LIBRARY_DIR / f"{name}.so"
    if not library.exists():
        reasons[name] = missing
        return
    try:
        torch.ops.load_library(str(library))
    except (OSError, RuntimeError) as error:
        reasons[name] = f"{library} did not load: {error}"


def cpu_loaded() -> bool:
    """Whether ``_cpu.so`` is loaded."""
    return "_cpu" not in reasons


def isa_level() -> str:
    """The ISA level in use: ``avx512vnni``, ``avx512``, ``avx2``, ``baseline``, or ``none`` without ``_cpu.so``."""
    return torch.ops.evoprune_raw.isa_level() if cpu_loaded() else "none"


def isa_levels() -> list[str]:
    """The levels that run on this machine, best first."""
    return torch.ops.evoprune_raw.isa_levels().split(",") if cpu_loaded() else []


def set_isa_level(level: str) -> None:
    """Use another ISA level from now on. Raises ``RuntimeError`` if it cannot run here."""
    if not cpu_loaded():
        raise RuntimeError(f"cannot set ISA level {level!r}: _cpu.so: {reasons['_cpu']}")
    torch.ops.evoprune_raw.set_isa_level(level)
