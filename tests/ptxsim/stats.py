"""Counts of a launch: warp instructions, and what its memory requests cost."""

from __future__ import annotations

from collections import Counter

import numpy as np

from .syntax import Instr


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

    def instruction(self, instr: Instr, active: np.ndarray) -> None:
        warps = np.unique(self.run.warp_of[active]).size
        self.counts["inst"] += warps
        self.counts["inst." + ".".join(instr.opcode).replace("~", "::")] += warps

    def access(
        self, kind: str, space: str, address: np.ndarray, lanes: np.ndarray, nbytes: int
    ) -> None:
        """Sectors (global) or bank wavefronts (shared) of one request of `nbytes` per lane."""
        run = self.run
        if not run.device.stats or not lanes.size:
            return
        where, offsets = run.locate(space, address, lanes)
        warp = run.warp_of[lanes].astype(np.int64)
        if where is run.device.memory:
            reach = (offsets[:, None] + np.arange(0, max(nbytes, 1), min(nbytes, 32))) // 32
            key = (warp[:, None] << 40) + reach
            if kind not in self.touched:
                self.touched[kind] = np.zeros(where.bytes.size // 32 + 1, bool)
            self.touched[kind][reach] = True
            self.counts[f"global.{kind}.sectors"] += np.unique(key).size
            self.counts[f"global.{kind}.bytes"] += int(nbytes * lanes.size)
            self.counts[f"global.{kind}.requests"] += np.unique(warp).size
        elif where is run.shared:
            word = (
                (offsets[:, None] + np.arange(0, nbytes, 4)) // 4
                if nbytes >= 4
                else (offsets // 4)[:, None]
            )
            phase = (
                (run.lane_in_warp[lanes].astype(np.int64) * nbytes // 128)[:, None]
                if nbytes > 4
                else np.zeros((lanes.size, 1), np.int64)
            )
            key = np.unique(((warp[:, None] * 32 + phase) << 32) + word)
            per_bank = np.unique(((key >> 32) << 5) + (key & 31), return_counts=True)
            groups = per_bank[0] >> 5
            worst = np.zeros(int(groups.max()) + 1, np.int64)
            np.maximum.at(worst, groups, per_bank[1])
            self.counts[f"shared.{kind}.wavefronts"] += int(worst.sum())
            self.counts[f"shared.{kind}.ideal"] += np.unique(groups).size
            self.counts[f"shared.{kind}.bytes"] += int(nbytes * lanes.size)

    def finish(self) -> None:
        """The counts that are known only when the launch has ended."""
        self.counts["shared.bytes_per_block"] = self.run.shared_bytes
        for kind, sectors in self.touched.items():
            self.counts[f"global.{kind}.footprint"] = 32 * int(sectors.sum())
