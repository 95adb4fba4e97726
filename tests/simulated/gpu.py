"""``Gpu``: the library of ``build.py``, connected to the PTX simulator."""

from __future__ import annotations

import ctypes
import functools
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch

from evoprune_kernels.ops import OPS
from tests.ptxsim import Device, Stats, parse
from tests.ptxsim.parse import Module
from tests.simulated import build
from tests.simulated.memory import HostMemory

#: cudaDeviceAttr numbers and their values on an A100
A100 = {75: 8, 76: 0, 16: 108, 97: 163 * 1024}
_LAUNCH = ctypes.CFUNCTYPE(
    ctypes.c_int, ctypes.c_char_p, ctypes.POINTER(ctypes.c_uint), ctypes.POINTER(ctypes.c_uint),
    ctypes.c_int64, ctypes.POINTER(ctypes.c_void_p),
)  # fmt: skip
_MEMORY = ctypes.CFUNCTYPE(None, ctypes.c_void_p, ctypes.c_int64, ctypes.c_int)
_schemas = torch.library.Library("evoprune_sim", "DEF")


@dataclass(frozen=True)
class Launch:
    """One launch of a kernel; unpacks to ``name, stats``."""

    name: str
    grid: tuple[int, int, int]
    block: tuple[int, int, int]
    shared: int  # dynamic bytes
    stats: Stats

    def __iter__(self) -> Iterator[Any]:
        return iter((self.name, self.stats))


@functools.cache
def _modules() -> dict[str, Module]:
    """Kernel name -> its parsed PTX module."""
    modules = [parse(path.read_text()) for path in build.ptx_files()]
    return {name: module for module in modules for name in module.kernels}


@functools.cache
def _library() -> ctypes.CDLL:
    path = build.build()
    for op in OPS.values():
        _schemas.define(str(op.overload._schema).removeprefix("evoprune::"))
    torch.ops.load_library(str(path))
    return ctypes.CDLL(str(path))


class Gpu:
    """Runs ``evoprune_sim`` ops; one at a time in a process.

    Attributes:
        launches: every launch of the last ``call``.
        attributes: cudaDeviceAttr -> value, those of an A100; change them to act as another device.
        on_host: tensors that are CPU tensors to a binding which takes those beside CUDA tensors; no kernel may touch
            them.
    """

    def __init__(self, memory: int = 1 << 26) -> None:
        self.library = _library()
        self.memory_bytes = memory
        self.attributes = dict(A100)
        self.launches: list[Launch] = []
        self.on_host: list[torch.Tensor] = []
        self._error: Exception | None = None
        self._callbacks = (_LAUNCH(self._launch), _MEMORY(self._know))

    def call(self, op: str, *args: Any, **kwargs: Any) -> Any:
        """``torch.ops.evoprune_sim.<op>(*args)`` on CPU tensors; a fault of a kernel is raised as itself.

        An overload is named after a dot: ``"adamw_step_.tensor_lr"``.
        """
        self.device = Device(stats=True)
        self.device.memory = HostMemory(self.memory_bytes)
        self.launches, self._error = [], None
        for attribute, value in self.attributes.items():
            self.library.evoprune_sim_attribute(attribute, value)
        self.library.evoprune_sim_host(None)
        for tensor in self.on_host:
            self.library.evoprune_sim_host(ctypes.c_void_p(tensor.data_ptr()))
        self.library.evoprune_sim_connect(*self._callbacks)
        packet, _, overload = op.partition(".")
        function = getattr(getattr(torch.ops.evoprune_sim, packet), overload or "default")
        try:
            return function(*args, **kwargs)
        except RuntimeError:
            if self._error is not None:
                raise self._error from None
            raise

    @property
    def stats(self) -> Stats:
        """The sum of the counts of all launches of the last ``call``."""
        total = Stats()
        for _, counts in self.launches:
            total.update(counts)
        return total

    def _know(self, address: int | None, size: int, holds_data: int) -> None:
        if address is None:
            return
        try:
            self.device.memory.know(address, size, bool(holds_data))
        except Exception as error:
            self._error = self._error or error

    def _launch(self, name: bytes, grid: Any, block: Any, shared: int, arguments: Any) -> int:
        """One launch; nothing may be raised through C, so an error is kept and reported as a failed launch."""
        if self._error is not None:
            return 0
        try:
            self._run(name.decode(), list(grid[:3]), list(block[:3]), shared, arguments)
        except Exception as error:
            self._error = error
            return 0
        return 1

    def _run(self, name: str, grid: list[int], block: list[int], shared: int, args: Any) -> None:
        module = _modules()[name]
        sizes = [parameter.size for parameter in module.kernels[name].params]
        values = [ctypes.string_at(args[i], size) for i, size in enumerate(sizes)]
        memory = self.device.memory
        memory.copy_in()
        counts = self.device.launch(module, name, grid, block, values, shared)
        memory.copy_out()
        self.launches.append(Launch(name, (*grid,), (*block,), shared, counts))
