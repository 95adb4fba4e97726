"""Loads, stores and atomics."""

from __future__ import annotations

import numpy as np

from .dispatch import op
from .memory import LOCAL_WINDOW, SHARED_WINDOW, MemoryFault, rows
from .syntax import SIZES, Vec
from .values import (
    NP,
    UINT,
    Unsupported,
    address_of,
    bf16_to_f32,
    destination,
    f32_to_bf16,
    source,
    type_of,
)

_SPACES = ("global", "shared", "local", "param", "const")


def _space(opcode) -> str:
    for part in opcode:
        head = part.split("~")[0]
        if head in _SPACES:
            return head
    return "generic"


@op("ld", "ldu")
def _ld(i, run, here):
    type_, space = type_of(i.opcode), _space(i.opcode)
    size = SIZES[type_]
    items = i.operands[0].items if isinstance(i.operands[0], Vec) else (i.operands[0],)
    raw = type_ if type_[0] in "us" else f"b{8 * size}"
    puts = [destination(o, raw, run) for o in items]
    address, total = address_of(i.operands[1], run), size * len(items)

    def step(active, group):
        at = address(active)
        if space == "param":
            for k, put in enumerate(puts):
                put(active, run.param.load(at + k * size, size).view(NP[raw]))
            return
        if total > size and (at % total).any():
            raise MemoryFault(f"misaligned {total}-byte vector load")
        run.count_access("load", space, at, active, total)
        words = run.load(space, at, active, total).reshape(active.size, -1).view(NP[raw])
        for k, put in enumerate(puts):
            put(active, words[:, k])

    return step


@op("st")
def _st(i, run, here):
    type_, space = type_of(i.opcode), _space(i.opcode)
    size = SIZES[type_]
    items = i.operands[1].items if isinstance(i.operands[1], Vec) else (i.operands[1],)
    gets = [source(o, f"b{8 * size}", run) for o in items]
    address, total = address_of(i.operands[0], run), size * len(items)

    def step(active, group):
        at = address(active)
        if total > size and (at % total).any():
            raise MemoryFault(f"misaligned {total}-byte vector store")
        run.count_access("store", space, at, active, total)
        words = np.stack([get(active) for get in gets], -1) if len(gets) > 1 else gets[0](active)
        run.store(space, at, active, rows(words.reshape(-1).view(np.uint8), total), total)

    return step


_ATOMIC = {
    "add": lambda a, b: a + b,
    "and": lambda a, b: a & b,
    "or": lambda a, b: a | b,
    "xor": lambda a, b: a ^ b,
    "min": min,
    "max": max,
    "exch": lambda a, b: b,
}


@op("atom", "red")
def _atom(i, run, here):
    type_, space = type_of(i.opcode), _space(i.opcode)
    size, returns = SIZES[type_], i.opcode[0] == "atom"
    operands = i.operands if returns else (None, *i.operands)
    kind = next(part for part in i.opcode if part in _ATOMIC or part in ("cas", "inc", "dec"))
    if kind in ("inc", "dec"):
        raise Unsupported(f"atom.{kind}")
    address = address_of(operands[1], run)
    values = [source(o, type_, run) for o in operands[2:]]
    put = destination(operands[0], type_, run) if returns else None

    def step(active, group):
        at, args, old = address(active), [get(active) for get in values], []
        run.count_access("atomic", space, at, active, size)
        for k in range(active.size):  # one lane after another: some order, as on a GPU
            lane = active[k : k + 1]
            where, offset = run.locate(space, at[k : k + 1], lane)
            bits = where.load(offset, size)
            before = bf16_to_f32(bits) if type_ == "bf16" else bits.view(NP[type_])
            old.append(before[0])
            if kind == "cas":
                new = args[1][k : k + 1] if before[0] == args[0][k] else before
            else:
                new = np.asarray([_ATOMIC[kind](before[0], args[0][k])])
            bits = (
                f32_to_bf16(new) if type_ == "bf16" else np.asarray(new, NP[type_]).view(UINT[size])
            )
            where.store(offset, bits, size)
        if put:
            put(active, np.array(old, np.float32 if type_ == "bf16" else NP[type_]))

    return step


@op("isspacep")
def _isspacep(i, run, here):
    get, put = source(i.operands[1], "u64", run), destination(i.operands[0], "pred", run)
    space = _space(i.opcode)

    def step(active, group):
        a = get(active)
        in_shared = (a >= SHARED_WINDOW) & (a < LOCAL_WINDOW)
        in_local = a >= LOCAL_WINDOW
        put(
            active,
            in_shared
            if space == "shared"
            else in_local
            if space == "local"
            else ~(in_shared | in_local),
        )

    return step
