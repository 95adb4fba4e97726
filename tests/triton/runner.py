"""The two ways to run a Triton launcher without a GPU, with the calls of ``tests.simulated.Gpu``.

``Simulated``   sm_80 PTX, compiled by Triton, on the PTX simulator: the memory checks, race checks and exact counts
``Interpreter`` Triton's interpreter, in a process of its own, for it replaces parts of Triton at import
"""

from __future__ import annotations

import io
import os
import struct
import subprocess
import sys
from typing import Any

import torch
import triton
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from evoprune_kernels.ops import _triton
from tests.ptxsim import Stats
from tests.triton.driver import Resources, SimulatedDriver, resources

ARCHITECTURES = (80, 90, 100)
_EMPTY = ("aten::empty", "aten::new_empty", "aten::empty_like", "aten::empty_strided")


def tensors_of(value: Any) -> list[Tensor]:
    """All tensors in nested lists, tuples and dicts, in order."""
    if isinstance(value, Tensor):
        return [value]
    if isinstance(value, dict):
        return tensors_of(list(value.values()))
    if isinstance(value, list | tuple):
        return [t for item in value for t in tensors_of(item)]
    return []


class _Allocations(TorchDispatchMode):
    """Notes which storages are fresh from an allocator: kernels may write them, and read them only after that."""

    def __init__(self, driver: SimulatedDriver) -> None:
        super().__init__()
        self.driver = driver
        self.kept: list[Tensor] = []  # alive, so that no address is given out twice

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        for tensor in tensors_of(result):
            self.kept.append(tensor)
            if func._schema.name in _EMPTY:
                self.driver.fresh.add(tensor.untyped_storage().data_ptr())
            elif func._schema.name == "aten::clone":  # which a table of pointers may hold
                self.driver.know(tensor)
        return result


class _Zeros(TorchDispatchMode):
    """Fills what no kernel will write: a launcher may read back sizes."""

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        return result.zero_() if func._schema.name in _EMPTY else result


class Simulated:
    """Runs launchers on the PTX simulator."""

    name = "simulated"

    def __init__(self) -> None:
        self.driver = SimulatedDriver()

    def call(self, op: str, *args: Any, **kwargs: Any) -> Any:
        """The launcher of ``op`` on CPU tensors; a fault of a kernel is raised as itself."""
        launcher, unfit = _triton.implementation(op)
        assert (why := unfit(*args, **kwargs)) is None, why
        return self.apply(launcher, *args, **kwargs)

    def apply(self, function: Any, *args: Any, **kwargs: Any) -> Any:
        """``function(*args)``, and every kernel that it launches."""
        driver = self.driver
        driver.reset()
        driver.arch, driver.run = 80, True
        triton.runtime.driver.set_active(driver)
        for tensor in tensors_of([args, kwargs]):
            driver.know(tensor)
        with _Allocations(driver):
            return function(*args, **kwargs)

    @property
    def launches(self) -> list[tuple[str, Stats]]:
        return self.driver.launches

    @property
    def stats(self) -> Stats:
        """The sum of the counts of all launches of the last ``call``."""
        total = Stats()
        for _, counts in self.launches:
            total.update(counts)
        return total

    def compile(self, op: str, *args: Any, **kwargs: Any) -> list[Resources]:
        """What ptxas says of every kernel that the launcher launches for these arguments, on every architecture."""
        launcher, _ = _triton.implementation(op)
        driver, found = self.driver, {}
        triton.runtime.driver.set_active(driver)
        for arch in ARCHITECTURES:
            driver.reset()
            driver.arch, driver.run = arch, False
            with _Zeros():
                launcher(*args, **kwargs)
            for kernel in driver.kernels:
                found[id(kernel)] = resources(kernel, arch)
        return list(found.values())


class Interpreter:
    """Runs launchers in Triton's interpreter, in a second process."""

    name = "interpreter"

    def __init__(self) -> None:
        self._process: subprocess.Popen[bytes] | None = None

    def call(self, op: str, *args: Any, **kwargs: Any) -> Any:
        """The launcher of ``op`` on copies of CPU tensors; what it changes in place is copied back."""
        if self._process is None:
            self._process = subprocess.Popen(
                [sys.executable, "-m", "tests.triton.interpreter"],
                stdin=subprocess.PIPE, stdout=subprocess.PIPE,
                env={**os.environ, "TRITON_INTERPRET": "1", "EVOPRUNE_DISABLE_NATIVE": "0"},
            )  # fmt: skip
        assert self._process.stdin and self._process.stdout
        send(self._process.stdin, (op, args, kwargs))
        result, error, changed = receive(self._process.stdout)
        if error is not None:
            raise error
        for mine, theirs in zip(tensors_of([args, kwargs]), tensors_of(changed), strict=True):
            mine.detach().copy_(theirs)
        return result

    def close(self) -> None:
        if self._process is not None and self._process.stdin:
            self._process.stdin.close()
            self._process.wait()


def send(stream: Any, message: Any) -> None:
    """One message of tensors and plain values to the other process."""
    buffer = io.BytesIO()
    torch.save(message, buffer)
    stream.write(struct.pack("<q", buffer.tell()) + buffer.getvalue())
    stream.flush()


def receive(stream: Any) -> Any:
    """The other end of ``send``; ``EOFError`` when the other process is gone."""
    header = stream.read(8)
    if len(header) < 8:
        raise EOFError("the interpreter process ended")
    return torch.load(io.BytesIO(stream.read(struct.unpack("<q", header)[0])), weights_only=False)
