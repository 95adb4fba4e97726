"""Counts of a launch: warp instructions, and what its memory requests cost."""

from __future__ import annotations

from collections import Counter

import numpy as np


class Stats(Counter):
    """Warp-level counts: 'inst', 'inst.<opcode>', and, for memory, requests and what they cost.

    `global.load.sectors` counts the distinct 32-byte sectors per warp request (what L1 serves),
    `global.load.bytes` the bytes asked for and `global.load.footprint` the bytes of all distinct
    sectors of the launch (what DRAM must move if the caches are perfect);
    `shared.load.wavefronts` counts bank passes against the `ideal` of no conflict.
    """


class Counting:
    """Fills the `Stats` of one run."""

    def __init__(self, run):
        self.run = run
        self.counts = Stats()
        self.touched: dict[str, np.ndarray] = {}
        self.warps_at = np.zeros(len(run.kernel.code), np.int64)
        self._known: dict[tuple[int, bytes], tuple[int, int]] = {}
        self._last: tuple[np.ndarray | None, int] = (None, 0)

    def warps(self, lanes: np.ndarray) -> int:
        """How many warps `lanes` are of; straight code asks again and again for the same lanes."""
        if self._last[0] is not lanes:
            warp = self.run.warp_of[lanes]
            self._last = (lanes, 1 + int(np.count_nonzero(warp[1:] != warp[:-1])))
        return self._last[1]

    def access(
        self, kind: str, space: str, address: np.ndarray, lanes: np.ndarray, nbytes: int
    ) -> None:
        """One request of `nbytes` per lane, to global or shared memory."""
        if not self.run.device.stats or not lanes.size:
            return
        where, offsets = self.run.locate(space, address, lanes)
        if where is self.run.device.memory:
            self._sectors(kind, offsets, lanes, nbytes)
        elif where is self.run.shared:
            self._wavefronts(kind, offsets, lanes, nbytes)

    def _sectors(self, kind: str, offsets, lanes, nbytes: int) -> None:
        sector = offsets >> 5  # an aligned access of at most 32 bytes lies in one
        if kind not in self.touched:
            self.touched[kind] = np.zeros(self.run.device.memory.bytes.size // 32 + 1, bool)
        self.touched[kind][sector.clip(0, self.touched[kind].size - 1)] = True
        key = np.sort((self.run.pick(self.run.warp_of, lanes) << 40) + sector)
        self.counts[f"global.{kind}.sectors"] += 1 + int(np.count_nonzero(key[1:] != key[:-1]))
        self.counts[f"global.{kind}.bytes"] += nbytes * lanes.size
        warp = key >> 40
        self.counts[f"global.{kind}.requests"] += 1 + int(np.count_nonzero(warp[1:] != warp[:-1]))

    def _wavefronts(self, kind: str, offsets, lanes, nbytes: int) -> None:
        key = None
        if lanes is self.run.every:  # loops ask the same again and again
            key = (nbytes, offsets.tobytes())
        found = self._known.get(key)
        if found is None:
            found = self._count_wavefronts(offsets, lanes, nbytes)
            if key is not None and len(self._known) < 1000:
                self._known[key] = found
        self.counts[f"shared.{kind}.wavefronts"] += found[0]
        self.counts[f"shared.{kind}.ideal"] += found[1]
        self.counts[f"shared.{kind}.bytes"] += nbytes * lanes.size

    def _count_wavefronts(self, offsets, lanes, nbytes: int) -> tuple[int, int]:
        """Each 128 bytes of a warp's request are a pass, and a bank gives one word of it a time."""
        pick, run = self.run.pick, self.run
        word = offsets >> 2
        group = pick(run.warp_of, lanes) << 5
        if nbytes > 4:
            word = word[:, None] + np.arange(nbytes // 4)
            group = (group + (pick(run.lane_in_warp, lanes).astype(np.int64) * nbytes >> 7))[
                :, None
            ]
        key = np.sort(((group << 32) + word).ravel())
        key = key[np.concatenate(([True], key[1:] != key[:-1]))]
        group = key >> 32
        index = np.concatenate(([0], np.cumsum(group[1:] != group[:-1])))
        groups = int(index[-1]) + 1
        banks = np.bincount((index << 5) + (key & 31), minlength=groups * 32).reshape(-1, 32)
        return int(banks.max(1).sum()), groups

    def finish(self) -> None:
        """The counts that are known only when the launch has ended."""
        for instr, warps in zip(self.run.kernel.code, self.warps_at, strict=True):
            if warps:
                self.counts["inst"] += int(warps)
                self.counts["inst." + ".".join(instr.opcode).replace("~", "::")] += int(warps)
        self.counts["shared.bytes_per_block"] = self.run.shared_bytes
        for kind, sectors in self.touched.items():
            self.counts[f"global.{kind}.footprint"] = 32 * int(np.count_nonzero(sectors))
