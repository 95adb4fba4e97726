"""Loads, stores and atomics."""

from __future__ import annotations

import numpy as np

from .dispatch import op
from .isa_arith import packed
from .memory import LOCAL_WINDOW, PARAM_WINDOW, SHARED_WINDOW, rows
from .syntax import SIZES, Vec
from .values import (
    NP,
    UINT,
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


def _strong(opcode, space: str) -> bool:
    """Whether the access may race by design, as atomics may."""
    strong = ("acquire", "release", "relaxed", "mmio")
    return any(part in strong or (part == "volatile" and space != "shared") for part in opcode)


@op("ld", "ldu")
def _ld(i, run, here):
    type_, space = type_of(i.opcode), _space(i.opcode)
    size = SIZES[type_]
    items = i.operands[0].items if isinstance(i.operands[0], Vec) else (i.operands[0],)
    raw = type_ if type_[0] in "us" else f"b{8 * size}"
    puts = [destination(o, raw, run) for o in items]
    address, total = address_of(i.operands[1], run), size * len(items)
    strong = _strong(i.opcode, space)

    def step(active, group):
        at = address(active)
        run.count_access("load", space, at, active, total)
        words = run.load(space, at, active, total, strong).reshape(active.size, -1).view(NP[raw])
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
    strong = _strong(i.opcode, space)

    def step(active, group):
        at = address(active)
        run.count_access("store", space, at, active, total)
        words = np.stack([get(active) for get in gets], -1) if len(gets) > 1 else gets[0](active)
        values = rows(words.reshape(-1).view(np.uint8), total)
        run.store(space, at, active, values, total, strong)

    return step


_ATOMIC = {
    "add": np.add,
    "and": np.bitwise_and,
    "or": np.bitwise_or,
    "xor": np.bitwise_xor,
    "min": np.minimum,
    "max": np.maximum,
    "exch": lambda old, new: new,
    "cas": lambda old, expected, new: np.where(old == expected, new, old),
    "inc": lambda old, limit: np.where(old >= limit, 0, old + 1),
    "dec": lambda old, limit: np.where((old == 0) | (old > limit), limit, old - 1),
}


def _rounds(address: np.ndarray):
    """Index arrays that cover all lanes; no address occurs twice in one, lanes are in order."""
    order = np.argsort(address, kind="stable")
    ordered = address[order]
    first = np.concatenate(([True], ordered[1:] != ordered[:-1]))
    start = np.maximum.accumulate(np.where(first, np.arange(order.size), 0))
    turn = np.arange(order.size) - start
    by_turn = np.argsort(turn, kind="stable")
    return np.split(order[by_turn], np.cumsum(np.bincount(turn))[:-1])


@op("atom", "red")
def _atom(i, run, here):
    type_, space = type_of(i.opcode), _space(i.opcode)
    size, returns = SIZES[type_], i.opcode[0] == "atom"
    operands = i.operands if returns else (None, *i.operands)
    kind = next(part for part in i.opcode[1:] if part in _ATOMIC)
    function = _ATOMIC[kind]
    if type_ in ("f16x2", "bf16x2"):
        function = packed(function, type_)
    address = address_of(operands[1], run)
    values = [source(o, type_, run) for o in operands[2 : 4 if kind == "cas" else 3]]
    put = destination(operands[0], type_, run) if returns else None
    dtype = np.float32 if type_ == "bf16" else NP[type_]

    def step(active, group):
        at, args = address(active), [get(active) for get in values]
        old = np.empty(active.size, dtype)
        run.count_access("atomic", space, at, active, size)
        where, offsets = run.locate(space, at, active)
        run.order_atomic(where, offsets, active, size)
        for turn in _rounds(offsets):  # some order of the lanes, as on a GPU
            bits = where.load(offsets[turn], size)
            old[turn] = bf16_to_f32(bits) if type_ == "bf16" else bits.view(dtype)
            new = np.asarray(function(old[turn], *(arg[turn] for arg in args)), dtype)
            bits = f32_to_bf16(new) if type_ == "bf16" else new.view(UINT[size])
            where.store(offsets[turn], bits, size)
        if put:
            put(active, old)

    return step


@op("isspacep")
def _isspacep(i, run, here):
    get, put = source(i.operands[1], "u64", run), destination(i.operands[0], "pred", run)
    space = _space(i.opcode)

    def step(active, group):
        a = get(active)
        inside = {"shared": (SHARED_WINDOW, LOCAL_WINDOW), "local": (LOCAL_WINDOW, PARAM_WINDOW)}
        low, high = inside.get(space, (0, SHARED_WINDOW))
        put(active, (a >= low) & (a < high))

    return step
