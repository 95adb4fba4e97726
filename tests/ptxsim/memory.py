"""The state spaces of a simulated device: global, shared, local and parameter memory.

Global memory is one heap with red zones between allocations and one shadow byte per byte
(0 = not allocated, 1 = allocated, 2 = written), so that an out-of-bounds, misaligned or
uninitialised access is an error that names the instruction, as a memory checker would.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

GLOBAL_BASE = 0x10_0000_0000
SHARED_WINDOW = 0x7000_0000_0000
LOCAL_WINDOW = 0x7100_0000_0000
WINDOW_SIZE = 0x100_0000_0000
RED_ZONE = 256
_UINT = {1: np.uint8, 2: np.uint16, 4: np.uint32, 8: np.uint64}


class MemoryFault(RuntimeError):
    """An access that a GPU would fault on or that reads undefined data."""


@dataclass(frozen=True)
class Pointer:
    """An allocation in global memory: its address, and the numpy view of its bytes."""

    address: int
    array: np.ndarray

    def __add__(self, nbytes: int) -> int:
        return self.address + nbytes


class Space:
    """A byte array with shadow state, addressed from 0 in units checked for alignment."""

    def __init__(
        self, name: str, size: int, allocated: bool, poison: int = 0, initcheck: bool = True
    ):
        self.initcheck = initcheck
        size = -(-max(size, 16) // 16) * 16
        self.name = name
        self.bytes = np.full(size, poison, np.uint8)
        self.shadow = np.full(size, 1 if allocated else 0, np.uint8)
        self._views = {size: self.bytes.view(dtype) for size, dtype in _UINT.items()}

    def _check(self, offsets: np.ndarray, size: int) -> None:
        if offsets.size == 0:
            return
        low, high = int(offsets.min()), int(offsets.max())
        if low < 0 or high + size > self.bytes.size:
            raise MemoryFault(
                f"{self.name} access outside the device's memory (offset {low}..{high})"
            )
        if size > 1 and (offsets & (size - 1)).any():
            raise MemoryFault(
                f"misaligned {size}-byte {self.name} access at offset {int(offsets[(offsets & (size - 1)) != 0][0])}"
            )
        if (self.shadow[offsets] == 0).any() or (self.shadow[offsets + (size - 1)] == 0).any():
            bad = offsets[(self.shadow[offsets] == 0) | (self.shadow[offsets + (size - 1)] == 0)]
            raise MemoryFault(
                f"out-of-bounds {size}-byte {self.name} access at offset {int(bad[0])}"
            )

    def load(self, offsets: np.ndarray, size: int) -> np.ndarray:
        self._check(offsets, size)
        if self.initcheck and offsets.size and (self.shadow[offsets] == 1).any():
            raise MemoryFault(
                f"uninitialised {size}-byte {self.name} read at offset {int(offsets[self.shadow[offsets] == 1][0])}"
            )
        return self._views[size][offsets // size]

    def store(self, offsets: np.ndarray, values: np.ndarray, size: int) -> None:
        self._check(offsets, size)
        self._views[size][offsets // size] = values
        for k in range(size):
            self.shadow[offsets + k] = 2


class GlobalMemory(Space):
    def __init__(self, size: int = 1 << 26, initcheck: bool = True):
        super().__init__("global", size, allocated=False, poison=0xA5, initcheck=initcheck)
        self._top = RED_ZONE

    def allocate(self, nbytes: int, written: bool = False) -> int:
        """Reserve `nbytes`, 256-byte aligned, with a red zone after; returns the address."""
        offset = self._top
        self._top = -(-(offset + nbytes + RED_ZONE) // 256) * 256
        if self._top > self.bytes.size:
            raise MemoryError("simulated global memory is full; give Device a larger `memory`")
        self.shadow[offset : offset + nbytes] = 2 if written else 1
        return GLOBAL_BASE + offset

    def upload(self, array: np.ndarray) -> Pointer:
        """Copy a numpy array into global memory."""
        array = np.ascontiguousarray(array)
        address = self.allocate(array.nbytes, written=True)
        start = address - GLOBAL_BASE
        self.bytes[start : start + array.nbytes] = array.reshape(-1).view(np.uint8)
        return Pointer(
            address, self.bytes[start : start + array.nbytes].view(array.dtype).reshape(array.shape)
        )

    def empty(self, shape, dtype) -> Pointer:
        """Allocate without initialising: a read before a write is an error."""
        dtype = np.dtype(dtype)
        nbytes = int(np.prod(shape)) * dtype.itemsize
        address = self.allocate(nbytes)
        start = address - GLOBAL_BASE
        return Pointer(address, self.bytes[start : start + nbytes].view(dtype).reshape(shape))

    def written(self, pointer: Pointer) -> np.ndarray:
        """A boolean array: which elements of `pointer.array` have been written."""
        start = pointer.address - GLOBAL_BASE
        item = pointer.array.dtype.itemsize
        return (self.shadow[start : start + pointer.array.nbytes : item] == 2).reshape(
            pointer.array.shape
        )

    def offsets(self, address: np.ndarray) -> np.ndarray:
        """Where global addresses lie in this memory."""
        return address - GLOBAL_BASE
