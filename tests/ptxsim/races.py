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
    """The last plain reader, plain writer and atomic user of every piece of a space.

    A piece is as large as the smallest access so far; at first 16 bytes.
    """

    what, party = "", ""

    def __init__(self, run, size: int):
        self.run, self.piece, self.shift = run, 16, 4
        self.pieces = -(-size // 16)
        self.writes, self.reads, self.atoms = (np.zeros(self.pieces, np.int64) for _ in range(3))
        self.used: set[str] = set()

    def mine(self, lanes: np.ndarray) -> np.ndarray:
        """The entry that an access of `lanes` leaves now."""
        raise NotImplementedError

    def conflicts(self, found: np.ndarray, mine: np.ndarray) -> np.ndarray:
        """Where an entry is of somebody else, and nothing orders it before `mine`."""
        raise NotImplementedError

    def order(self, lanes: np.ndarray) -> None:
        """`lanes` are about to do an atomic access."""

    def read(self, offsets, lanes, size) -> None:
        at, mine = self._places(offsets, size), self.mine(lanes)[:, None]
        self._check(at, mine, ("writes", "atoms"), "read")
        self._note("reads", at, mine)

    def write(self, offsets, lanes, size, news=slice(None), lost=slice(None)) -> None:
        """`news`: the lanes that change what was there; `lost`: those whose value is not there now."""
        at, mine = self._places(offsets, size), self.mine(lanes)[:, None]
        self._check(at, mine, ("reads", "atoms"), "written")
        self._check(at[news], mine[news], ("writes",), "written")
        self.used.add("writes")
        self.writes[at] = mine
        self._check(at[lost], mine[lost], ("writes",), "written")  # by two in this very access

    def atomic(self, offsets, lanes, size) -> None:
        """Atomic accesses race with plain ones only."""
        at, mine = self._places(offsets, size), self.mine(lanes)[:, None]
        self._check(at, mine, ("reads", "writes"), "used atomically")
        self._note("atoms", at, mine)

    def _places(self, offsets, size) -> np.ndarray:
        """[lanes, n] indices of the pieces that each lane touches."""
        if size < self.piece:
            self._refine(size)
        first = (offsets >> self.shift)[:, None]
        return first if size == self.piece else first + np.arange(size >> self.shift)

    def _refine(self, piece: int) -> None:
        times = self.piece // piece
        self.piece, self.shift, self.pieces = piece, piece.bit_length() - 1, self.pieces * times
        for name in ("writes", "reads", "atoms"):
            old = getattr(self, name)
            fine = np.repeat(old, times) if name in self.used else np.zeros(self.pieces, np.int64)
            setattr(self, name, fine)

    def _check(self, at, mine, tables: tuple[str, ...], verb: str) -> None:
        for name in tables:
            if name not in self.used:
                continue
            bad = self.conflicts(getattr(self, name)[at], mine)
            if bad.any():
                lane, column = (int(k[0]) for k in np.nonzero(bad))
                byte = self.name_of(int(at[lane, column]) << self.shift)
                who = (int(mine[lane, 0]) & SEVERAL) - 1
                other = {"reads": "read", "writes": "wrote", "atoms": "changed"}[name]
                raise RaceError(
                    f"{self.what} byte {byte} {verb} by {self.party} {who};"
                    f" another {self.party} {other} it and nothing orders the two"
                )

    def _note(self, name: str, at, mine) -> None:
        """Leave `mine` in the table; where several use a piece, at one time, leave SEVERAL."""
        table, new = getattr(self, name), mine
        if name in self.used:
            new = np.where(self.conflicts(table[at], mine), mine | SEVERAL, mine)
        self.used.add(name)
        table[at] = new
        met = (table[at] != new).any(1)  # two lanes of one access share all its pieces or none
        if met.any():
            table[at[met]] = mine[met] | SEVERAL

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
