"""CUDA C++ source -> parsed PTX, with nvcc, for the tests."""

from __future__ import annotations

import shutil
import subprocess
import tempfile
from functools import cache
from pathlib import Path

from .parse import parse
from .syntax import Module

#: header -> the text that needs it; the two of halves take nvcc most of its time
HEADERS = {"cuda_fp16.h": "__half", "cuda_bf16.h": "__nv_bfloat", "cstdint": "int"}


def have_nvcc() -> bool:
    return shutil.which("nvcc") is not None


@cache
def compile_cuda(source: str, arch: str = "sm_80", flags: tuple[str, ...] = ()) -> Module:
    """Compile a translation unit; the same text is compiled once in a test run."""
    with tempfile.TemporaryDirectory() as folder:
        cu, ptx = Path(folder, "k.cu"), Path(folder, "k.ptx")
        needed = [name for name, word in HEADERS.items() if word in source]
        cu.write_text("".join(f"#include <{name}>\n" for name in needed) + source)
        command = ["nvcc", f"-arch={arch}", *flags, "-ptx", str(cu), "-o", str(ptx)]
        done = subprocess.run(command, capture_output=True, text=True)
        if done.returncode:
            raise ValueError(f"nvcc: {done.stderr}")
        return parse(ptx.read_text())
