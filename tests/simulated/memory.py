"""The memory of torch tensors as the simulator's global memory: known regions, copied in and out around a launch."""

from __future__ import annotations

import bisect
import ctypes
from dataclasses import dataclass

import numpy as np

from tests.ptxsim.memory import ALLOCATED, GLOBAL_BASE, WRITTEN, GlobalMemory, MemoryFault


@dataclass
class Region:
    """Bytes that the kernels may touch: where they are on the host and in the simulator's memory."""

    host: int
    size: int
    offset: int

    def bytes_on_host(self) -> np.ndarray:
        return np.ctypeslib.as_array((ctypes.c_uint8 * self.size).from_address(self.host))


class HostMemory(GlobalMemory):
    """Global memory whose addresses are host addresses of known regions; anything else is out of bounds."""

    def __init__(self, size: int = 1 << 26):
        super().__init__(size)
        self.regions: list[Region] = []
        self._hosts: list[int] = []
        self._arrays: tuple[np.ndarray, np.ndarray, np.ndarray] | None = None

    def know(self, address: int, size: int, holds_data: bool) -> None:
        """Allow ``size`` bytes at ``address``; ``holds_data``: they may be read before a kernel writes them."""
        if size == 0:
            return
        at = bisect.bisect_right(self._hosts, address) - 1
        region = self.regions[at] if at >= 0 else None
        if region is None or address >= region.host + region.size:
            region = self._add(address, size)
        elif address + size > region.host + region.size:
            raise MemoryFault(
                f"{size} bytes at {address:#x} overlap the known {region.size} bytes at {region.host:#x}"
            )
        if holds_data:
            start = region.offset + address - region.host
            self.shadow[start : start + size] = ALLOCATED | WRITTEN

    def _add(self, address: int, size: int) -> Region:
        # the same address within a sector and a red zone before and after
        offset = self.allocate(size + 256) - GLOBAL_BASE
        self.shadow[offset : offset + size + 256] = 0
        offset += (address - offset) % 256
        self.shadow[offset : offset + size] = ALLOCATED
        region = Region(address, size, offset)
        at = bisect.bisect(self._hosts, address)
        self.regions.insert(at, region)
        self._hosts.insert(at, address)
        self._arrays = None
        return region

    def offsets(self, address: np.ndarray) -> np.ndarray:
        """Where host addresses lie in this memory."""
        if not self.regions:
            raise MemoryFault("global access, but no tensor was made known")
        if self._arrays is None:
            starts = np.array(self._hosts, np.int64)
            ends = np.array([r.host + r.size for r in self.regions], np.int64)
            self._arrays = starts, ends, np.array([r.offset - r.host for r in self.regions])
        starts, ends, shift = self._arrays
        at = np.searchsorted(starts, address, side="right") - 1
        outside = (at < 0) | (address >= ends[at])
        if outside.any():
            first = int(address[outside][0])
            nearest = self.regions[max(int(at[outside][0]), 0)]
            raise MemoryFault(
                f"out-of-bounds global access, {first - nearest.host} bytes from the start of {nearest.size} known ones"
            )
        return address + shift[at]

    def copy_in(self) -> None:
        """Read what the host holds; bytes that nothing wrote stay poisoned."""
        for region in self.regions:
            inside = slice(region.offset, region.offset + region.size)
            known = (self.shadow[inside] & WRITTEN) != 0
            self.bytes[inside][known] = region.bytes_on_host()[known]

    def copy_out(self) -> None:
        """Give the host what the kernels wrote."""
        for region in self.regions:
            inside = slice(region.offset, region.offset + region.size)
            known = (self.shadow[inside] & WRITTEN) != 0
            region.bytes_on_host()[known] = self.bytes[inside][known]
