"""Branches, exits, barriers, and what needs no simulation."""

from __future__ import annotations

import numpy as np

from .dispatch import op
from .isa_warp import warp_sync
from .values import Unsupported, destination, source


@op("bra")
def _bra(i, run, here):
    target = run.kernel.labels[i.operands[0].name]
    return lambda active, group: run.branch(active, group, target, here)


@op("ret", "exit")
def _exit(i, run, here):
    return lambda active, group: run.exit(active, group, here)


@op("trap", "brkpt")
def _trap(i, run, here):
    def step(active, group):
        raise Unsupported("the kernel executed trap")

    return step


@op("bar", "barrier")
def _bar(i, run, here):
    if "warp" in i.opcode:
        return warp_sync(lambda active, group: None, i.operands[0], run, here)
    if "red" in i.opcode:
        return _bar_red(i, run, here)
    if "sync" not in i.opcode and "arrive" not in i.opcode:
        raise Unsupported(".".join(i.opcode))
    which = source(i.operands[0], "u32", run)
    count = source(i.operands[1], "u32", run) if len(i.operands) > 1 else None

    def step(active, group):
        barrier = which(active).astype(np.int64)
        if "arrive" in i.opcode:
            return run.arrive(active, barrier)
        return run.wait(
            active, group, here, barrier, count(active).astype(np.int64) if count else 0
        )

    return step


def _bar_red(i, run, here):
    """d, barrier[, threads], predicate: every lane gets the and, or or count of all predicates."""
    which, vote = source(i.operands[1], "u32", run), source(i.operands[-1], "pred", run)
    count = source(i.operands[2], "u32", run) if len(i.operands) == 4 else None
    kind = next(part for part in i.opcode if part in ("popc", "and", "or"))
    put = destination(i.operands[0], "u32" if kind == "popc" else "pred", run)

    def finish(lanes, ones, every):
        put(lanes, {"popc": ones.astype(np.uint32), "and": ones == every, "or": ones > 0}[kind])

    def step(active, group):
        run.votes[active] = vote(active)
        run.reductions.append((active, finish))
        barrier = which(active).astype(np.int64)
        return run.wait(
            active, group, here, barrier, count(active).astype(np.int64) if count else 0
        )

    return step


@op(
    "membar",
    "fence",
    "prefetch",
    "prefetchu",
    "nanosleep",
    "discard",
    "applypriority",
    "griddepcontrol",
    "setmaxnreg",
    "createpolicy",
)
def _nothing(i, run, here):
    return lambda active, group: None
