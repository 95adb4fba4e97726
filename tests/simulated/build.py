"""Builds ``build/simulated/simulated.so`` and one PTX file a kernel source, with ninja: only what changed."""

from __future__ import annotations

import functools
import shutil
import subprocess
import sys
from pathlib import Path

import torch

ROOT = Path(__file__).parent.parent.parent
BUILD = ROOT / "build" / "simulated"
STABLE_ABI = "-DTORCH_TARGET_VERSION=0x020a000000000000"


def reason() -> str | None:
    """Why the library cannot be built here, or None."""
    if shutil.which("nvcc") is None:
        return "nvcc is not installed"
    return None if shutil.which("g++") else "g++ is not installed"


def cuda_include() -> Path:
    """The folder of the CUDA headers, as nvcc itself says."""
    said = subprocess.run(
        ["nvcc", "--dryrun", "-E", "-x", "cu", "/dev/null"], capture_output=True, text=True
    )
    top = next(line for line in said.stderr.splitlines() if line.startswith("#$ TOP="))
    folder = Path(top.removeprefix("#$ TOP="))
    return (folder / "targets" / "x86_64-linux" / "include").resolve()


def ninja_file() -> str:
    """Rules and edges: kernels to PTX and host objects, bindings and the runtime to objects, one library."""
    torch_root = Path(torch.__file__).parent
    cuda = cuda_include()
    includes = f"-I{ROOT / 'csrc'} -isystem {cuda}"
    cxx = f"-std=c++20 -O1 -fPIC -fvisibility=hidden -Wall -Wextra -Wno-restrict {includes}"
    bindings = f"-DEVOPRUNE_SIMULATED=1 {STABLE_ABI} -isystem {torch_root / 'include'}"
    lines = [
        "rule cu",
        "  command = mkdir -p $keep && nvcc -std=c++20 -c -gencode arch=compute_80,code=compute_80"
        f" --keep --keep-dir $keep -MD -MF $out.d {includes} -Xcompiler -fPIC,-O1 $in -o $out",
        "  depfile = $out.d",
        "  deps = gcc",
        "  description = nvcc $in",
        "rule cxx",
        f"  command = g++ {cxx} $extra -MMD -MF $out.d -c $in -o $out",
        "  depfile = $out.d",
        "  deps = gcc",
        "  description = g++ $in",
        "rule link",
        f"  command = g++ -shared $in -o $out -L{torch_root / 'lib'} -ltorch_cpu -ltorch -lc10",
    ]
    objects = []
    for source in sorted((ROOT / "csrc" / "cuda").glob("*.cu")):
        objects.append(f"cuda/{source.stem}.o")
        lines += [f"build {objects[-1]}: cu {source}", f"  keep = keep/{source.stem}"]
    for source in sorted((ROOT / "csrc" / "ops_cuda").glob("*.cpp")):
        objects.append(f"ops/{source.stem}.o")
        lines += [f"build {objects[-1]}: cxx {source}", f"  extra = {bindings}"]
    objects.append("runtime.o")
    lines += ["build runtime.o: cxx " + str(Path(__file__).parent / "runtime.cpp")]
    lines += [f"build simulated.so: link {' '.join(objects)}"]
    return "\n".join(lines) + "\n"


@functools.cache
def build() -> Path:
    """The library; raises with the compiler's words when it does not compile."""
    BUILD.mkdir(parents=True, exist_ok=True)
    (BUILD / "build.ninja").write_text(ninja_file())
    ninja = [sys.executable, "-m", "ninja", "-C", str(BUILD)]
    done = subprocess.run(ninja, capture_output=True, text=True)
    if done.returncode:
        raise RuntimeError(f"the simulated CUDA library did not build:\n{done.stdout}{done.stderr}")
    return BUILD / "simulated.so"


def ptx_files() -> list[Path]:
    """The PTX of every kernel source."""
    sources = sorted((ROOT / "csrc" / "cuda").glob("*.cu"))
    return [BUILD / "keep" / source.stem / f"{source.stem}.ptx" for source in sources]
