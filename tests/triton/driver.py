"""A Triton driver without a GPU: launches run on the PTX simulator, on the memory of CPU tensors, or only compile.

Triton asks its active driver for the target, to load a binary and to launch it. This one answers, so that what runs is
the package's launcher and Triton's own specialisation, compiler and argument list, down to the PTX.
"""

from __future__ import annotations

import re
import subprocess
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import triton
from triton.backends.compiler import GPUTarget
from triton.backends.driver import DriverBase

from tests.ptxsim import Device, Stats, parse
from tests.ptxsim.syntax import Module
from tests.simulated.memory import HostMemory

MAX_SHARED = {80: 163 * 1024, 90: 227 * 1024, 100: 227 * 1024}


@dataclass(frozen=True)
class Resources:
    """What ptxas says about a kernel: registers a thread, spilled bytes, bytes of stack; and its shared memory."""

    kernel: str
    arch: int
    registers: int
    spills: int
    stack: int
    shared: int


def resources(kernel: Any, arch: int) -> Resources:
    """The figures of Triton's own ptxas, and of Triton, for a ``CompiledKernel``."""
    ptx = kernel.asm["ptx"]
    folder = Path(triton.__file__).parent / "backends" / "nvidia" / "bin"
    ptxas = folder / ("ptxas-blackwell" if arch >= 90 else "ptxas")  # as Triton itself chooses
    target = re.search(r"^\.target (\w+)", ptx, re.M)
    with tempfile.NamedTemporaryFile("w", suffix=".ptx") as file:
        file.write(ptx)
        file.flush()
        command = [ptxas, "-v", f"--gpu-name={target and target[1]}", file.name, "-o", "/dev/null"]
        said = subprocess.run(command, capture_output=True, text=True, check=True).stderr
    figures = re.search(r"(\d+) bytes stack frame, (\d+) bytes spill stores", said)
    registers = re.search(r"Used (\d+) registers", said)
    assert figures and registers, said
    used, spilled, stack = (int(n) for n in (registers[1], figures[2], figures[1]))
    return Resources(kernel.name, arch, used, spilled, stack, kernel.metadata.shared)


class _Utils:
    """What Triton calls ``driver.active.utils``."""

    def __init__(self, driver: SimulatedDriver) -> None:
        self.driver = driver

    def get_device_properties(self, arch: int) -> dict[str, int]:
        return {"max_shared_mem": MAX_SHARED[arch], "multiprocessor_count": 108, "warpSize": 32}

    def load_binary(self, name: str, binary: bytes, shared: int, arch: int) -> tuple[Any, ...]:
        return "module", self.driver.compiled[binary], 0, 0, 1024

    def unload_module(self, module: Any) -> None:
        pass


class _Launcher:
    """Runs one compiled kernel; ``function`` is the ``CompiledKernel`` itself."""

    def __init__(self, source: Any, metadata: Any) -> None:
        names = source.fn.arg_names
        constants = {names[i] if isinstance(i, int) else i for i in source.constants}
        self.passed = [
            kind != "constexpr" and name not in constants for name, kind in source.signature.items()
        ]

    def __call__(self, x: int, y: int, z: int, stream: Any, function: Any, *rest: Any) -> None:
        arguments = rest[4:]  # after packed and launch metadata and two hooks
        values = [a for a, passed in zip(arguments, self.passed, strict=True) if passed]
        triton.runtime.driver.active.launch(function, (x, y, z), values)


class SimulatedDriver(DriverBase):
    """The active driver while a ``Simulated`` runner calls a launcher.

    Attributes:
        arch: compute capability times ten that kernels are compiled for; Triton's caches take it for the device.
        launches: ``(kernel name, Stats)`` of every launch since ``reset``.
        kernels: the compiled kernels of those launches.
    """

    def __init__(self) -> None:
        super().__init__()
        self.arch, self.run = 80, True
        self.utils = _Utils(self)
        self.launcher_cls = _Launcher
        self.compiled: dict[bytes, Any] = {}
        self._modules: dict[str, Module] = {}
        self.reset()
        compile_kernel = triton.compiler.compile

        def remember(*args: Any, **kwargs: Any) -> Any:
            kernel = compile_kernel(*args, **kwargs)
            self.compiled[kernel.kernel] = kernel
            return kernel

        triton.compiler.compile = remember

    def reset(self, memory: int = 1 << 26) -> None:
        """Forget the launches and all known memory."""
        self.device = Device(stats=True, same_value_writes=True)
        self.device.memory = HostMemory(memory)
        self.launches: list[tuple[str, Stats]] = []
        self.kernels: list[Any] = []
        self.fresh: set[int] = set()  # addresses of storages that nothing has written

    def know(self, tensor: Any) -> None:
        """Kernels may touch the memory of this tensor, from its first element to its last."""
        if tensor.numel() == 0:
            return
        span = 1 + sum((n - 1) * s for n, s in zip(tensor.shape, tensor.stride(), strict=True))
        written = tensor.untyped_storage().data_ptr() not in self.fresh
        self.device.memory.know(tensor.data_ptr(), span * tensor.element_size(), written)

    def launch(self, kernel: Any, grid: tuple[int, ...], values: list[Any]) -> None:
        self.kernels.append(kernel)
        if not self.run:
            return
        ptx = kernel.asm["ptx"]
        module = self._modules.setdefault(ptx, parse(ptx) if ptx not in self._modules else None)
        for value in values:
            if hasattr(value, "data_ptr"):
                self.know(value)
        raw = [value.data_ptr() if hasattr(value, "data_ptr") else value for value in values]
        memory = self.device.memory
        memory.copy_in()
        block = 32 * kernel.metadata.num_warps
        counts = self.device.launch(module, kernel.name, grid, block, raw, kernel.metadata.shared)
        memory.copy_out()
        self.launches.append((kernel.name, counts))

    def get_current_device(self) -> int:
        return self.arch

    def get_current_stream(self, device: int) -> int:
        return 0

    def get_current_target(self) -> GPUTarget:
        return GPUTarget("cuda", self.arch, 32)

    def get_active_torch_device(self) -> Any:
        raise NotImplementedError

    def get_benchmarker(self) -> Any:
        raise NotImplementedError

    def map_python_to_cpp_type(self, ty: str) -> str:
        raise NotImplementedError

    @staticmethod
    def is_active() -> bool:
        return True
