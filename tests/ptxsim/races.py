"""Data races: between warps on shared memory, between blocks on global memory.

A table holds, for every byte, its last user as `when << 24 | who`, so that one
gather and one comparison tell whether somebody else used the byte since the last ordering point.
"""

from __future__ import annotations

import numpy as np

WHO = 24  # bits
SEVERAL = (1 << WHO) - 1


class RaceError(RuntimeError):
    """Two warps (or blocks) touched one byte, one writing, and nothing orders them."""


class Races:
    """The last plain reader, plain writer and atomic user of every byte of a space."""

    what, party = "", ""

    def __init__(self, run, size: int):
        self.run = run
        self.writes, self.reads = np.zeros(size, np.int64), np.zeros(size, np.int64)
        self.atoms: np.ndarray | None = None

    def mine(self, lanes: np.ndarray) -> np.ndarray:
        """The entry that an access of `lanes` leaves now."""
        raise NotImplementedError

    def conflicts(self, found: np.ndarray, mine: np.ndarray) -> np.ndarray:
        """Where an entry is of somebody else, and nothing orders it before `mine`."""
        raise NotImplementedError

    def order(self, lanes: np.ndarray) -> None:
        """`lanes` are about to do an atomic access."""

    def read(self, offsets, lanes, size) -> None:
        mine = self.mine(lanes)[:, None]
        self._check(offsets, size, mine, (self.writes, self.atoms), "read")
        self._note(self.reads, offsets, size, mine)

    def write(self, offsets, lanes, size) -> None:
        mine = self.mine(lanes)[:, None]
        self._check(offsets, size, mine, (self.reads, self.writes, self.atoms), "written")
        self.writes.reshape(-1, size)[offsets >> (size.bit_length() - 1)] = mine
        self._check(offsets, size, mine, (self.writes,), "written")  # by two in this very access

    def atomic(self, offsets, lanes, size) -> None:
        """Atomic accesses race with plain ones only."""
        mine = self.mine(lanes)[:, None]
        self._check(offsets, size, mine, (self.reads, self.writes), "used atomically")
        if self.atoms is None:
            self.atoms = np.zeros(self.writes.size, np.int64)
        self._note(self.atoms, offsets, size, mine)

    def _check(self, offsets, size, mine, tables, verb) -> None:
        at = offsets >> (size.bit_length() - 1)
        for table in tables:
            if table is None:
                continue
            bad = self.conflicts(table.reshape(-1, size)[at], mine)
            if bad.any():
                lane, byte = (int(k[0]) for k in np.nonzero(bad))
                who = (int(mine[lane, 0]) & SEVERAL) - 1
                other = {id(self.reads): "read", id(self.writes): "wrote"}.get(id(table), "changed")
                raise RaceError(
                    f"{self.what} byte {self.name_of(int(offsets[lane]) + byte)} {verb} by "
                    f"{self.party} {who}; another {self.party} {other} it and nothing orders the two"
                )

    def _note(self, table, offsets, size, mine) -> None:
        """Leave `mine` in the table; where several use a byte, at one time, leave SEVERAL."""
        rows, at = table.reshape(-1, size), offsets >> (size.bit_length() - 1)
        new = np.where(self.conflicts(rows[at], mine), mine | SEVERAL, mine)
        rows[at] = new
        met = (rows[at] != new).any(1)  # two lanes of one access share all its bytes or none
        rows[at[met]] = mine[met] | SEVERAL

    def name_of(self, offset: int) -> int:
        return offset


class WarpRaces(Races):
    """Shared memory: accesses of one warp are ordered, of two warps only by a barrier."""

    what, party = "shared", "warp"

    def __init__(self, run):
        super().__init__(run, run.shared.bytes.size)
        self.epoch = np.ones(run.blocks, np.int64)
        self.who = run.warp_of + 1
        self.barrier(np.arange(run.blocks))

    def barrier(self, blocks: np.ndarray) -> None:
        self.epoch[blocks] += 1
        self.now = self.who | (self.epoch << WHO)[self.run.block_of]

    def mine(self, lanes):
        return self.run.pick(self.now, lanes)

    def conflicts(self, found, mine):
        return ((found ^ mine) - 1).view(np.uint64) < np.uint64(SEVERAL)  # same time, not same who

    def name_of(self, offset: int) -> int:
        return offset % self.run.shared_stride


class BlockRaces(Races):
    """Global memory: two blocks are ordered only if both passed an atomic after the first access.

    Every atomic on global memory is taken as a full ordering point of the block that does it,
    which is what "write, fence, count; the last block reads" needs. Races that an unrelated atomic
    would hide are not seen.
    """

    what, party = "global", "block"

    def __init__(self, run):
        super().__init__(run, run.device.memory.used)
        self.time = 1
        self.ordered = np.zeros(run.blocks + 1, np.int64)  # by block + 1: when its last atomic was
        self.who = run.block_of + 1

    def order(self, lanes: np.ndarray) -> None:
        self.time += 1
        self.ordered[self.run.pick(self.who, lanes)] = self.time

    def mine(self, lanes):
        return self.run.pick(self.who, lanes) | (self.time << WHO)

    def conflicts(self, found, mine):
        who, me = found & SEVERAL, mine & SEVERAL
        bad = (found != 0) & (who != me)
        if self.time > 1 and bad.any():
            when, several = found >> WHO, who == SEVERAL
            published = several | (self.ordered[np.where(several, 0, who)] > when)
            bad &= ~(published & (self.ordered[me] > when))
        return bad
