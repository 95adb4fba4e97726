"""Branches, exits, barriers, and what needs no simulation."""

from __future__ import annotations

import numpy as np

from .dispatch import op
from .values import Unsupported, source


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
    if "sync" not in i.opcode:
        raise Unsupported(".".join(i.opcode))
    if i.opcode[1] == "warp":
        return lambda active, group: None
    which = source(i.operands[0], "u32", run)
    count = source(i.operands[1], "u32", run) if len(i.operands) > 1 else None
    return lambda active, group: run.wait(
        active,
        group,
        here,
        which(active).astype(np.int64),
        count(active).astype(np.int64) if count else 0,
    )


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
