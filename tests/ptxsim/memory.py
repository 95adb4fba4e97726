"""The state spaces of a simulated device: global, shared, local and parameter memory.

Global memory is one heap with red zones between allocations and one shadow byte per byte
(allocated, written, written by a copy in flight), so that an out-of-bounds, misaligned or
uninitialised access is an error that names the instruction, as a memory checker would.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache

import numpy as np

GLOBAL_BASE = 0x10_0000_0000
SHARED_WINDOW = 0x7000_0000_0000
LOCAL_WINDOW = 0x7100_0000_0000
PARAM_WINDOW = 0x7200_0000_0000
WINDOW_SIZE = 0x100_0000_0000
RED_ZONE = 256
SIZES = (1, 2, 4, 8, 16, 32)
ALLOCATED, WRITTEN, IN_FLIGHT = 1, 2, 4  # bits of a shadow byte
_UINT = {1: np.uint8, 2: np.uint16, 4: np.uint32, 8: np.uint64}


def rows(array: np.ndarray, size: int) -> np.ndarray:
    """A view of bytes with one row per `size` bytes: words up to 8, else uint64 [n, size / 8]."""
    return array.view(_UINT[size]) if size <= 8 else array.view(np.uint64).reshape(-1, size // 8)


@cache
def pattern(byte: int, size: int):
    """`byte` repeated over a word of `size` bytes (8 at most)."""
    size = min(size, 8)
    return _UINT[size](int.from_bytes(bytes([byte]) * size, "little"))


def window_of(address: int) -> tuple[str, int]:
    """The state space that a generic address lies in, and where its window starts."""
    for space, start in (
        ("shared", SHARED_WINDOW),
        ("local", LOCAL_WINDOW),
        ("param", PARAM_WINDOW),
    ):
        if start <= address < start + WINDOW_SIZE:
            return space, start
    return "global", 0


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
    """A byte array with shadow state, addressed from 0 in units checked for alignment.

    Accesses are of 1 to 32 bytes a lane: as unsigned words [lanes] up to 8 bytes, else as
    [lanes, bytes / 8] of uint64.
    """

    def __init__(
        self, name: str, size: int, allocated: bool, poison: int = 0, initcheck: bool = True
    ):
        size = -(-max(size, 32) // 32) * 32
        self.name = name
        self.bytes, self.shadow = np.zeros(size, np.uint8), np.zeros(size, np.uint8)
        if allocated:
            self.bytes[:], self.shadow[:] = poison, ALLOCATED
        self.poison = poison
        self._words = {n: rows(self.bytes, n) for n in SIZES}
        self._shadows = {n: rows(self.shadow, n) for n in SIZES}
        self._wanted = ALLOCATED | WRITTEN if initcheck else ALLOCATED

    def _states(self, offsets: np.ndarray, size: int, wanted: int) -> np.ndarray:
        """The rows of `offsets`; every byte must have the `wanted` bits and no copy in flight."""
        bits, high = int(np.bitwise_or.reduce(offsets)), int(offsets.max())
        if bits < 0 or high + size > self.bytes.size:
            low = int(offsets.min())
            raise MemoryFault(
                f"{self.name} access outside the device's memory (offset {low}..{high})"
            )
        if bits & (size - 1):
            bad = int(offsets[(offsets & (size - 1)) != 0][0])
            raise MemoryFault(f"misaligned {size}-byte {self.name} access at offset {bad}")
        at = offsets >> (size.bit_length() - 1)
        state = self._shadows[size][at]
        mask, need = pattern(wanted | IN_FLIGHT, size), pattern(wanted, size)
        if not ((state & mask) == need).all():
            self._explain(offsets, size, wanted)
        return at

    def _explain(self, offsets: np.ndarray, size: int, wanted: int) -> None:
        state = self.shadow[offsets[:, None] + np.arange(size)]
        access = f"{size}-byte {self.name}"
        for bad, what in (
            ((state & ALLOCATED) == 0, f"out-of-bounds {access} access"),
            ((state & IN_FLIGHT) != 0, f"{access} access to bytes of a cp.async in flight"),
            ((state & wanted) != wanted, f"uninitialised {access} read"),
        ):
            if bad.any():
                raise MemoryFault(f"{what} at offset {int(offsets[bad.any(1)][0])}")

    def load(self, offsets: np.ndarray, size: int) -> np.ndarray:
        if not offsets.size:
            return self._words[size][offsets]
        return self._words[size][self._states(offsets, size, self._wanted)]

    def differs(self, offsets: np.ndarray, values: np.ndarray, size: int) -> np.ndarray:
        """Which lanes' values are not what this space holds; unchecked."""
        differs = self._words[size][offsets >> (size.bit_length() - 1)] != values
        return differs if differs.ndim == 1 else differs.any(1)

    def store(self, offsets: np.ndarray, values: np.ndarray, size: int) -> None:
        if offsets.size:
            at = self._states(offsets, size, ALLOCATED)
            self._words[size][at] = values
            self._shadows[size][at] = pattern(ALLOCATED | WRITTEN, size)

    def fly(self, offsets: np.ndarray, size: int) -> None:
        """From now to `land` nothing else may touch these bytes."""
        at = self._states(offsets, size, ALLOCATED)
        self._shadows[size][at] |= pattern(IN_FLIGHT, size)

    def land(self, offsets: np.ndarray, values: np.ndarray, size: int) -> None:
        at = offsets >> (size.bit_length() - 1)
        self._words[size][at] = values
        self._shadows[size][at] = pattern(ALLOCATED | WRITTEN, size)


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
        self.shadow[offset : offset + nbytes] = ALLOCATED | WRITTEN if written else ALLOCATED
        self.bytes[offset : offset + nbytes] = self.poison
        return GLOBAL_BASE + offset

    @property
    def used(self) -> int:
        return self._top

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
        return (self.shadow[start : start + pointer.array.nbytes : item] & WRITTEN != 0).reshape(
            pointer.array.shape
        )

    def offsets(self, address: np.ndarray) -> np.ndarray:
        """Where global addresses lie in this memory."""
        return address - GLOBAL_BASE
