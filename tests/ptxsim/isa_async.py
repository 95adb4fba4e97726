"""Asynchronous copies from global to shared memory."""

from __future__ import annotations

import numpy as np

from .dispatch import op
from .memory import MemoryFault
from .values import UINT, Unsupported, address_of, source


class AsyncCopies:
    """cp.async: bytes land in shared memory only when the thread that copied waits for the group.

    So a missing wait shows as stale data, and a missing barrier after it as a race.
    """

    def __init__(self, run):
        self.run = run
        self.committed = np.zeros(run.lanes, np.int64)
        self.pending: list[tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]] = []

    def issue(self, lanes, address, data) -> None:
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
        size = data.shape[1]
        step = min(size, 8)
        words = np.ascontiguousarray(data).view(UINT[step])
        for k in range(words.shape[1]):
            self.run.store("shared", address + k * step, lanes, words[:, k], step)


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
    count = source(i.operands[3], "u32", run) if len(i.operands) > 3 else None

    def step(active, group):
        at, real = (
            from_(active),
            count(active).astype(np.int64) if count else np.full(active.size, size),
        )
        data = np.zeros((active.size, size), np.uint8)
        reading = real > 0
        if ((to(active) % size) != 0).any() or (at[reading] % size != 0).any():
            raise MemoryFault(f"misaligned {size}-byte cp.async")
        if reading.any():
            run.count_access("load", "global", at[reading], active[reading], size)
            unit = 4
            for k in range(0, size, unit):
                some = real > k
                if some.any():
                    words = run.load("global", at[some] + k, active[some], unit)
                    data[some, k : k + unit] = words[:, None].view(np.uint8)
        keep = np.arange(size)[None, :] < real[:, None]
        run.async_copies.issue(active, to(active), np.where(keep, data, 0).astype(np.uint8))

    return step
