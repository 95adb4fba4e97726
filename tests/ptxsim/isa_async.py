"""Asynchronous copies from global to shared memory."""

from __future__ import annotations

import numpy as np

from .dispatch import op
from .memory import MemoryFault, rows
from .syntax import Reg
from .values import Unsupported, address_of, source


class AsyncCopies:
    """cp.async: bytes land in shared memory only when the thread that copied waits for the group.

    So a missing wait shows as stale data, and a missing barrier after it as a race.
    """

    def __init__(self, run):
        self.run = run
        self.committed = np.zeros(run.lanes, np.int64)
        self.pending: list[tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]] = []

    def issue(self, lanes, address, data) -> None:
        """Start a copy; it is a race already now if another warp may still read the place."""
        run, size = self.run, data.shape[1]
        run.count_access("copy", "shared", address, lanes, size)
        where, offsets = run.locate("shared", address, lanes)
        where.fly(offsets, size)
        if run.warp_races:
            run.warp_races.write(offsets, lanes, size)
        self.pending.append((lanes, address, data, self.committed[lanes].copy()))

    def commit(self, lanes) -> None:
        self.committed[lanes] += 1

    def wait(self, lanes, leave: int) -> None:
        limit = np.full(self.run.lanes, -1, np.int64)
        limit[lanes] = self.committed[lanes] - leave
        kept = []
        for who, address, data, group in self.pending:
            done = group < limit[who]
            if done.any():
                self._land(who[done], address[done], data[done])
            if not done.all():
                kept.append((who[~done], address[~done], data[~done], group[~done]))
        self.pending = kept

    def _land(self, lanes, address, data) -> None:
        run, size = self.run, data.shape[1]
        where, offsets = run.locate("shared", address, lanes)
        where.land(offsets, rows(data.reshape(-1), size), size)
        if run.warp_races:
            run.warp_races.write(offsets, lanes, size)


@op("cp")
def _cp(i, run, here):
    if i.opcode[:2] != ("cp", "async") or "bulk" in i.opcode or "mbarrier" in i.opcode:
        raise Unsupported(".".join(i.opcode))
    if "commit_group" in i.opcode:
        return lambda active, group: run.async_copies.commit(active)
    if "wait_group" in i.opcode or "wait_all" in i.opcode:
        if "wait_all" in i.opcode:

            def wait_all(active, group):
                run.async_copies.commit(active)
                run.async_copies.wait(active, 0)

            return wait_all
        leave = i.operands[0].value
        return lambda active, group: run.async_copies.wait(active, leave)
    size = i.operands[2].value
    to, from_ = address_of(i.operands[0], run), address_of(i.operands[1], run)
    rest = i.operands[3:-1] if "cache_hint" in i.text else i.operands[3:]
    count = _source_bytes(rest[0], size, run) if rest else None

    def step(active, group):
        into, at = to(active), from_(active)
        real = count(active) if count else np.full(active.size, size)
        reading = real > 0
        if (into & (size - 1)).any() or (at[reading] & (size - 1)).any():
            raise MemoryFault(f"misaligned {size}-byte cp.async")
        if (real > size).any():
            raise MemoryFault(f"cp.async of {int(real.max())} bytes into {size}")
        run.count_access("load", "global", at[reading], active[reading], size)
        if (real == size).all():
            data = run.load("global", at, active, size).view(np.uint8).reshape(-1, size)
        else:
            data = np.zeros((active.size, size), np.uint8)
            for k in range(size):
                some = real > k
                data[some, k] = run.load("global", at[some] + k, active[some], 1)
        run.async_copies.issue(active, into, data)

    return step


def _source_bytes(operand, size: int, run):
    """The src-size operand, or `size` and 0 for an ignore-src predicate."""
    if isinstance(operand, Reg) and operand.size == 1:
        ignore = source(operand, "pred", run)
        return lambda lanes: np.where(ignore(lanes), 0, size)
    get = source(operand, "u32", run)
    return lambda lanes: get(lanes).astype(np.int64)
