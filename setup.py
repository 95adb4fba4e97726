"""Builds the native libraries with ninja; everything else is in pyproject.toml.

``_cpu.so``    the torch ops, through the libtorch stable ABI (one build serves torch >= 2.10).
               Each ``csrc/cpu`` file is compiled once per ISA level; the level is chosen at load. The integer
               kernels are compiled once more with VNNI: the level avx512vnni is avx512 with these.
``_cuda.so``   the same ops for NVIDIA GPUs: csrc/cuda by nvcc for every architecture of CUDA_ARCHS, csrc/ops_cuda by
               the C++ compiler. Needs an nvcc, no GPU; what ptxas says of each kernel is kept beside its object.
``_native``    a small pybind11 module without torch: build facts, the packed-format oracle, and the
               reader of an optimizer's tensors.

``EVOPRUNE_BUILD=auto|cpu|cuda|none``   auto builds what the machine can; cpu and cuda insist, cpu alone and both;
                                        none skips.
``EVOPRUNE_CUDA_ARCHS=80,90``      other architectures than the default.
``EVOPRUNE_SANITIZE=1``            AddressSanitizer and UBSan.
``EVOPRUNE_STRICT=1``              warnings are errors (what ``make test`` uses).
``EVOPRUNE_BUILD_DIR=folder``      where objects are kept, so that the next build compiles what changed.
``EVOPRUNE_EMULATE=avx512``        the AVX-512 level through SIMDe on a CPU without it (for tests).
"""

import os
import platform
import shutil
import subprocess
import sys
import sysconfig
from pathlib import Path

from setuptools import Extension, setup
from setuptools.command.build_ext import build_ext

ROOT = Path(__file__).parent.resolve()
STABLE_ABI = "-DTORCH_TARGET_VERSION=0x020a000000000000"  # torch 2.10, the oldest we load in
ISA_FLAGS = {
    "baseline": [],
    "avx2": ["-mavx2", "-mfma", "-mf16c"],
    "avx512": ["-mavx512f", "-mavx512bw", "-mavx512vl", "-mavx512dq", "-mfma", "-mf16c"],
}
# the integer kernels once more, for AVX-512 CPUs that have VNNI
VNNI_FLAGS = ["-DEVOPRUNE_VNNI", "-mavx512vnni"]
VNNI_SOURCES = "w8a8_*.cpp"
CUDA_ARCHS = "80,86,89,90,100"  # machine code for each, and PTX of the first for any later one
EMULATED_FLAGS = [*ISA_FLAGS["avx2"], "-DEVOPRUNE_EMULATE_AVX512", "-Wno-psabi"]


def sources(folder: str, names: str = "*.cpp") -> list[Path]:
    return sorted((ROOT / "csrc" / folder).glob(names))


def find_nvcc() -> str | None:
    """The CUDA compiler: $NVCC, then $CUDA_HOME, then the PATH."""
    home = os.environ.get("CUDA_HOME") or os.environ.get("CUDA_PATH")
    in_home = str(Path(home) / "bin" / "nvcc") if home else None
    return next((p for p in (os.environ.get("NVCC"), in_home) if p and Path(p).exists()), None) or (
        shutil.which("nvcc")
    )


def cuda_root(nvcc: str) -> Path:
    """Where the headers and libraries of an nvcc are, as it says itself."""
    command = [nvcc, "--dryrun", "-E", "-x", "cu", "/dev/null"]
    said = subprocess.run(command, capture_output=True, text=True, check=True).stderr
    top = next(line for line in said.splitlines() if line.startswith("#$ TOP="))
    return Path(top.removeprefix("#$ TOP=")).resolve()


def arch_flags() -> str:
    """nvcc's flags for the architectures to build for."""
    archs = os.environ.get("EVOPRUNE_CUDA_ARCHS", CUDA_ARCHS).split(",")
    code = [f"-gencode arch=compute_{arch},code=sm_{arch}" for arch in archs]
    return " ".join([*code, f"-gencode arch=compute_{archs[0]},code=compute_{archs[0]}"])


def kernel_builds(x86: bool, emulate: bool) -> list[tuple[str, list[Path], list[str]]]:
    """``(level, files, flags)`` of every compilation of ``csrc/cpu``."""
    flags = ISA_FLAGS | ({"avx512": EMULATED_FLAGS} if emulate else {})
    builds = [
        (level, sources("cpu"), flags[level]) for level in flags if x86 or level == "baseline"
    ]
    if x86:
        vnni = [*flags["avx512"], *(VNNI_FLAGS[:1] if emulate else VNNI_FLAGS)]
        builds.append(("avx512vnni", sources("cpu", VNNI_SOURCES), vnni))
    return builds


class NinjaFile:
    """The rules and edges of one build: every object, then the libraries that are made of them."""

    def __init__(self, compiler: str, nvcc: str | None, out: Path) -> None:
        import torch

        self.compiler, self.nvcc, self.out = compiler, nvcc, out
        self.emulate = os.environ.get("EVOPRUNE_EMULATE") == "avx512"
        self.sanitize = os.environ.get("EVOPRUNE_SANITIZE") == "1"
        self.strict = os.environ.get("EVOPRUNE_STRICT") == "1"
        self.x86 = platform.machine() in ("x86_64", "AMD64")
        torch_root = Path(torch.__file__).parent
        self.torch_flags = f"-isystem {torch_root / 'include'} {STABLE_ABI}"
        self.torch_libs = f"-L{torch_root / 'lib'} -ltorch_cpu -ltorch -lc10"
        self.facts = f"-DEVOPRUNE_X86={int(self.x86)} -DEVOPRUNE_EMULATED={int(self.emulate)}"
        self.lines: list[str] = []

    def text(self) -> str:
        self.rules()
        self.cpu_library()
        if self.nvcc is not None and not self.sanitize:
            self.cuda_library(self.nvcc)
        if (Path(sysconfig.get_path("include")) / "Python.h").exists():
            self.native_module()
        else:
            print("evoprune_kernels: built without _native (the oracle): Python.h is not installed")
        return "\n".join(self.lines) + "\n"

    def rules(self) -> None:
        flags = ["-std=c++20", "-fPIC", "-fvisibility=hidden", "-Wall", "-Wextra"]
        flags += ["-ffp-contract=off", "-fno-math-errno", "-Wno-psabi", f"-I{ROOT / 'csrc'}"]
        flags += ["-Wno-restrict"]  # GCC 12 reports std::string concatenation falsely
        flags += ["-Werror"] if self.strict else []
        checks = ["-fsanitize=address,undefined", "-fno-sanitize-recover=undefined"]
        flags += ["-O1", "-g", *checks, "-DEVOPRUNE_SANITIZED=1"] if self.sanitize else ["-O3"]
        link = ["-shared", *checks] if self.sanitize else ["-shared"]
        self.lines += [
            f"flags = {' '.join(flags)}",
            "defined = -Wl,--no-undefined" if not self.sanitize else "defined =",
            "rule cxx",
            f"  command = {self.compiler} -MMD -MF $out.d $flags $extra -c $in -o $out",
            "  depfile = $out.d",
            "  deps = gcc",
            "  description = compiling $out",
            "rule link",
            f"  command = {self.compiler} {' '.join(link)} $defined $in -o $out $libs",
            "  description = linking $out",
        ]

    def compile(self, source: Path, tag: str, extra: str) -> str:
        obj = f"{tag}/{source.stem}.o"
        self.lines += [f"build {obj}: cxx {source}", f"  extra = {extra}"]
        return obj

    def cpu_library(self) -> None:
        objects = [
            self.compile(source, level, " ".join([f"-DEVOPRUNE_ISA={level}", *isa]))
            for level, files, isa in kernel_builds(self.x86, self.emulate)
            for source in files
        ]
        flags = f"{self.torch_flags} {self.facts}"
        objects += [self.compile(source, "ops", flags) for source in sources("ops")]
        self.lines += [f"build {self.out / '_cpu.so'}: link {' '.join(objects)}"]
        self.lines += [f"  libs = {self.torch_libs}"]

    def cuda_library(self, nvcc: str) -> None:
        root = cuda_root(nvcc)
        strict = "-Werror all-warnings" if self.strict else ""
        flags = f"-std=c++20 -O3 {strict} {arch_flags()} -I{ROOT / 'csrc'}"
        host = "-Xcompiler -fPIC,-fvisibility=hidden -Xptxas -v"
        self.lines += [
            "rule nvcc",
            f"  command = {nvcc} {flags} {host} -MD -MF $out.d -c $in -o $out 2> $out.ptxas || "
            "(cat $out.ptxas >&2; false)",
            "  depfile = $out.d",
            "  deps = gcc",
            "  description = compiling $out",
        ]
        objects = []
        for source in sources("cuda", "*.cu"):
            objects.append(f"cuda/{source.stem}.o")
            self.lines += [f"build {objects[-1]}: nvcc {source}"]
        headers = f"{self.torch_flags} -isystem {root / 'include'}"
        objects += [self.compile(source, "ops_cuda", headers) for source in sources("ops_cuda")]
        runtime = f"-L{root / 'lib64'} -lcudart_static -ldl -lrt -lpthread"
        self.lines += [
            f"build {self.out / '_cuda.so'}: link {' '.join(objects)}",
            "  defined =",  # torch's current stream: only in the libraries of a torch with CUDA
            f"  libs = {self.torch_libs} {runtime}",
        ]

    def native_module(self) -> None:
        import pybind11

        python = f"-isystem {pybind11.get_include()} -isystem {sysconfig.get_path('include')}"
        objects = [self.compile(source, "native", "") for source in sources("native")]
        for source in sources("."):
            objects += [self.compile(source, "module", f"{python} {self.facts}")]
        suffix = sysconfig.get_config_var("EXT_SUFFIX")
        self.lines += [f"build {self.out / '_native'}{suffix}: link {' '.join(objects)}"]
        self.lines += ["  libs = -Wl,--unresolved-symbols=ignore-all"]


class NinjaBuild(build_ext):
    """Writes one build.ninja for all libraries and runs it."""

    def get_ext_filename(self, fullname: str) -> str:
        # no Python modules: loaded by torch.ops.load_library
        if fullname.endswith(("_cpu", "_cuda")):
            return os.path.join(*fullname.split(".")) + ".so"
        return super().get_ext_filename(fullname)

    def build_extensions(self) -> None:
        mode = os.environ.get("EVOPRUNE_BUILD", "auto")
        if mode not in ("auto", "cpu", "cuda", "none"):
            raise ValueError(f"EVOPRUNE_BUILD: expected auto, cpu, cuda or none, got {mode!r}")
        compiler = os.environ.get("CXX") or shutil.which("g++") or shutil.which("c++")
        reason = "EVOPRUNE_BUILD=none" if mode == "none" else None
        if reason is None and compiler is None:
            reason = "no C++ compiler found (install g++, or set CXX)"
        if reason is not None:
            if mode in ("cpu", "cuda"):
                raise RuntimeError(f"EVOPRUNE_BUILD={mode}: {reason}")
            print(f"evoprune_kernels: built without native code, references only: {reason}")
            return
        out = Path(self.get_ext_fullpath("evoprune_kernels._native")).parent.resolve()
        out.mkdir(parents=True, exist_ok=True)
        build = Path(os.environ.get("EVOPRUNE_BUILD_DIR") or self.build_temp).resolve()
        build.mkdir(parents=True, exist_ok=True)
        nvcc = find_nvcc() if mode in ("auto", "cuda") else None
        if mode == "cuda" and nvcc is None:
            raise RuntimeError("EVOPRUNE_BUILD=cuda: no nvcc found (set NVCC or CUDA_HOME)")
        (build / "build.ninja").write_text(NinjaFile(str(compiler), nvcc, out).text())
        ninja = [sys.executable, "-m", "ninja", "-C", str(build)]
        if jobs := os.environ.get("MAX_JOBS"):
            ninja += ["-j", jobs]
        subprocess.run(ninja, check=True)


setup(
    ext_modules=[
        Extension("evoprune_kernels._native", ["csrc/module.cpp"], optional=True),
        Extension("evoprune_kernels._cpu", [], optional=True),
        Extension("evoprune_kernels._cuda", [], optional=True),
    ],
    cmdclass={"build_ext": NinjaBuild},
)
