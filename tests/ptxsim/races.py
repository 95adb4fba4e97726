"""Data races between warps, found by barrier epochs."""

from __future__ import annotations

import numpy as np


class RaceError(RuntimeError):
    """Two warps of a block touched the same shared byte, one writing, with no barrier between."""


class RaceCheck:
    """Happens-before by barrier epochs: accesses of one warp are ordered, of two warps only by a barrier."""

    def __init__(self, run):
        self.run = run
        size = run.shared.bytes.size
        self.epoch = np.ones(run.blocks, np.int64)
        self.write_epoch = np.zeros(size, np.int64)
        self.write_warp = np.full(size, -1, np.int64)
        self.read_epoch = np.zeros(size, np.int64)
        self.read_warp = np.full(size, -1, np.int64)  # -2: several warps

    def barrier(self, blocks: np.ndarray) -> None:
        self.epoch[blocks] += 1

    def _each(self, offsets, lanes, size):
        at = (offsets[:, None] + np.arange(size)).ravel()
        return (
            at,
            np.repeat(self.run.warp_of[lanes], size),
            np.repeat(self.epoch[self.run.block_of[lanes]], size),
        )

    def read(self, offsets, lanes, size) -> None:
        at, warp, epoch = self._each(offsets, lanes, size)
        bad = (self.write_epoch[at] == epoch) & (self.write_warp[at] != warp)
        if bad.any():
            raise RaceError(
                f"shared byte {int(at[bad][0]) % self.run.shared_stride} read by warp "
                f"{int(warp[bad][0])} without a barrier after warp "
                f"{int(self.write_warp[at[bad][0]])} wrote it"
            )
        mixed = (self.read_epoch[at] == epoch) & (self.read_warp[at] != warp)
        self.read_warp[at] = np.where(mixed, -2, warp)
        self.read_epoch[at] = epoch

    def write(self, offsets, lanes, size) -> None:
        at, warp, epoch = self._each(offsets, lanes, size)
        bad = (self.read_epoch[at] == epoch) & (self.read_warp[at] != warp)
        bad |= (self.write_epoch[at] == epoch) & (self.write_warp[at] != warp)
        if bad.any():
            raise RaceError(
                f"shared byte {int(at[bad][0]) % self.run.shared_stride} written by warp "
                f"{int(warp[bad][0])} without a barrier after another warp used it"
            )
        self.write_warp[at], self.write_epoch[at] = warp, epoch
