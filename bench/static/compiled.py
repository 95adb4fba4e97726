"""What ptxas says of every kernel: registers, spills, stack, shared memory.

The normal build keeps ptxas's words beside each object (``build/ninja/cuda/<stem>.o.ptxas``). A log that is newer than
the kernel's source and every header it includes, and has the architectures that are asked for, is read as it is; for
any other the source is compiled here.
"""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path

from bench.gate import ROOT, GateError

CSRC = ROOT / "csrc"
KEPT = ROOT / "build" / "ninja" / "cuda"
OWN = ROOT / "build" / "static"


@dataclass(frozen=True)
class Compiled:
    """One kernel for one architecture."""

    kernel: str  # demangled: nm_linear_kernel<__half, Tile<64, 64>>
    arch: str  # "80"
    registers: int = 0
    spills: int = 0  # bytes of stores and loads
    stack: int = 0  # bytes
    shared: int = 0  # static bytes

    @property
    def family(self) -> str:
        """The name without template arguments."""
        return self.kernel.partition("<")[0]


def archs() -> list[str]:
    """The architectures that setup.py builds for."""
    found = re.search(r'^CUDA_ARCHS = "([\d,]+)"', (ROOT / "setup.py").read_text(), re.M)
    if found is None:
        raise ValueError('setup.py: expected a line CUDA_ARCHS = "..."')
    return found[1].split(",")


def demangle(names: Iterable[str]) -> dict[str, str]:
    """Mangled -> short name, with template arguments; ``c++filt`` comes with every g++ (binutils)."""
    listed = sorted(set(names))
    tool = shutil.which("c++filt")
    if tool is None:
        raise GateError("c++filt (binutils) is not installed")
    done = subprocess.run(
        [tool], input="\n".join(listed), capture_output=True, text=True, check=True
    )
    return dict(zip(listed, map(short, done.stdout.splitlines()), strict=True))


def short(name: str) -> str:
    """``void evoprune::cuda::a_kernel<float, evoprune::cuda::Tile>(Args)`` -> ``a_kernel<float, Tile>``."""
    name = re.sub(r"\(anonymous namespace\)::|evoprune::cuda::|evoprune::", "", name)
    name = name.removeprefix("void ")
    depth = 0
    for place, letter in enumerate(name):
        depth += (letter == "<") - (letter == ">")
        if letter == "(" and depth == 0:
            return name[:place]
    return name


def parse(log: str) -> list[Compiled]:
    """The kernels in the words of ``ptxas -v``; of functions that were not inlined the stack counts too."""
    found: list[Compiled] = []
    for line in log.splitlines():
        if entry := re.search(r"Compiling entry function '(\w+)' for 'sm_(\d+)\w*'", line):
            found.append(Compiled(entry[1], entry[2]))
            continue
        if not found:
            continue
        last = found[-1]
        if spill := re.search(
            r"(\d+) bytes stack frame, (\d+) bytes spill stores, (\d+) bytes spill loads", line
        ):
            frame, stores, loads = map(int, spill.groups())
            found[-1] = replace(last, stack=last.stack + frame, spills=last.spills + stores + loads)
        elif used := re.search(r"Used (\d+) registers", line):
            shared = re.search(r"(\d+) bytes smem", line)
            found[-1] = replace(
                last, registers=int(used[1]), shared=int(shared[1]) if shared else 0
            )
    names = demangle(kernel.kernel for kernel in found) if found else {}
    return [replace(kernel, kernel=names[kernel.kernel]) for kernel in found]


def included(source: Path) -> set[Path]:
    """``source`` and every header of csrc that it includes, directly or not."""
    seen: set[Path] = set()
    waiting = [source]
    while waiting:
        path = waiting.pop()
        if path in seen:
            continue
        seen.add(path)
        names = re.findall(r'^\s*#include "([^"]+)"', path.read_text(), re.M)
        waiting += [CSRC / name for name in names if (CSRC / name).exists()]
    return seen


def kept(source: Path, wanted: Sequence[str]) -> list[Compiled] | None:
    """The kernels of a log that is up to date and has every architecture, or None."""
    newest = max(path.stat().st_mtime for path in included(source))
    for folder in (KEPT, OWN):
        log = folder / f"{source.stem}.o.ptxas"
        if not log.exists() or log.stat().st_mtime < newest:
            continue
        found = parse(log.read_text())
        if not found or {kernel.arch for kernel in found} >= set(wanted):  # a file without kernels
            return [kernel for kernel in found if kernel.arch in wanted]
    return None


def compile_(source: Path, wanted: Sequence[str]) -> list[Compiled]:
    """Compile ``source`` as setup.py does; its log is kept in build/static."""
    OWN.mkdir(parents=True, exist_ok=True)
    code = [f"-gencode=arch=compute_{arch},code=sm_{arch}" for arch in wanted]
    command = ["nvcc", "-std=c++20", "-O3", *code, f"-I{CSRC}", "-Xptxas", "-v", "-c", str(source)]
    target = OWN / f"{source.stem}.o"
    done = subprocess.run([*command, "-o", str(target)], capture_output=True, text=True)
    if done.returncode:
        raise GateError(f"{source.name} does not compile:\n{done.stderr}")
    target.with_suffix(".o.ptxas").write_text(done.stderr)
    return parse(done.stderr)


def kernels(wanted: Sequence[str]) -> list[Compiled]:
    """Every kernel of csrc/cuda for every architecture that is asked for.

    Raises:
        GateError: without nvcc where something has to be compiled, or if it does not compile.
    """
    sources = sorted((CSRC / "cuda").glob("*.cu"))
    found = {source: kept(source, wanted) for source in sources}
    stale = [source for source in sources if found[source] is None]
    if stale and shutil.which("nvcc") is None:
        raise GateError(f"nvcc is not installed, and no log is kept of {stale[0].name}")
    if stale:
        print(f"compiling {', '.join(s.name for s in stale)}", file=sys.stderr, flush=True)
    with ThreadPoolExecutor(2) as pool:
        compiled = pool.map(lambda source: compile_(source, wanted), stale)
        found |= dict(zip(stale, compiled, strict=True))
    listed = [kernel for of_source in found.values() for kernel in of_source or []]
    return sorted(listed, key=lambda k: (k.kernel, int(k.arch)))
