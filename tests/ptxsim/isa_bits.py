"""Logic, shifts and bit fields, per thread."""

from __future__ import annotations

import numpy as np

from .dispatch import op
from .isa_arith import elementwise
from .syntax import SIZES
from .values import NP, Unsupported, destination, source, type_of


def _bits(function, arity):
    return lambda i, run, here: elementwise(i, run, type_of(i.opcode), function, arity)


op("and")(_bits(lambda a, b: a & b, 2))
op("or")(_bits(lambda a, b: a | b, 2))
op("xor")(_bits(lambda a, b: a ^ b, 2))
op("not")(_bits(lambda a: ~a, 1))
op("cnot")(_bits(lambda a: (a == 0).astype(a.dtype), 1))


@op("shl", "shr")
def _shift(i, run, here):
    type_ = type_of(i.opcode)
    width = 8 * SIZES[type_]
    a, b, put = (
        source(i.operands[1], type_, run),
        source(i.operands[2], "u32", run),
        destination(i.operands[0], type_, run),
    )
    left = i.opcode[0] == "shl"

    def step(active, group):
        x, n = a(active), b(active)
        inside = np.minimum(n, width - 1).astype(x.dtype)
        if left:
            value = np.where(n >= width, 0, x << inside)
        elif type_[0] == "s":
            value = x >> inside
        else:
            value = np.where(n >= width, 0, x >> inside)
        put(active, value.astype(x.dtype))

    return step


@op("shf")
def _funnel(i, run, here):
    low, high, n = (source(o, "u32", run) for o in i.operands[1:4])
    put, left, wrap = destination(i.operands[0], "b32", run), "l" in i.opcode, "wrap" in i.opcode

    def step(active, group):
        both = (high(active).astype(np.uint64) << np.uint64(32)) | low(active)
        shift = (n(active) & 31 if wrap else np.minimum(n(active), 32)).astype(np.uint64)
        value = (both << shift) >> np.uint64(32) if left else both >> shift
        put(active, value.astype(np.uint32))

    return step


@op("prmt")
def _prmt(i, run, here):
    if len(i.opcode) > 2:
        raise Unsupported("prmt mode")
    a, b, c = (source(o, "u32", run) for o in i.operands[1:4])
    put = destination(i.operands[0], "b32", run)

    def step(active, group):
        both = (b(active).astype(np.uint64) << np.uint64(32)) | a(active)
        selector, out = c(active), np.zeros(active.size, np.uint32)
        for k in range(4):
            nibble = (selector >> np.uint32(4 * k)) & 0xF
            byte = (both >> ((nibble & 7).astype(np.uint64) * np.uint64(8))) & np.uint64(0xFF)
            byte = np.where(nibble & 8, np.where(byte & np.uint64(0x80), 0xFF, 0), byte)
            out |= byte.astype(np.uint32) << np.uint32(8 * k)
        put(active, out)

    return step


@op("lop3")
def _lop3(i, run, here):
    a, b, c = (source(o, "b32", run) for o in i.operands[1:4])
    table, put = i.operands[4].value, destination(i.operands[0], "b32", run)

    def step(active, group):
        x, y, z, out = a(active), b(active), c(active), np.zeros(active.size, np.uint32)
        for k in range(8):
            if table >> k & 1:
                out |= (x if k & 4 else ~x) & (y if k & 2 else ~y) & (z if k & 1 else ~z)
        put(active, out)

    return step


@op("bfe")
def _bfe(i, run, here):
    type_ = type_of(i.opcode)
    width = 8 * SIZES[type_]
    unsigned = "u" + type_[1:]
    a, pos, count = (
        source(i.operands[1], unsigned, run),
        source(i.operands[2], "u32", run),
        source(i.operands[3], "u32", run),
    )
    put = destination(i.operands[0], unsigned, run)

    def step(active, group):
        x, p, n = (
            a(active).astype(np.uint64),
            (pos(active) & 0xFF).astype(np.uint64),
            (count(active) & 0xFF).astype(np.uint64),
        )
        n = np.minimum(n, width)
        mask = np.where(
            n >= 64, np.uint64(2**64 - 1), (np.uint64(1) << np.minimum(n, 63)) - np.uint64(1)
        )
        value = np.where(p >= width, 0, x >> np.minimum(p, 63)) & mask
        if type_[0] == "s":
            top = np.minimum(p + n - 1, width - 1)
            sign = np.where(n == 0, 0, (x >> np.minimum(top, 63)) & np.uint64(1))
            value = np.where(sign, value | ~mask, value)
        put(active, value.astype(NP[unsigned]))

    return step


@op("bfi")
def _bfi(i, run, here):
    type_ = type_of(i.opcode)
    width = np.uint64(8 * SIZES[type_])
    a, b = source(i.operands[1], type_, run), source(i.operands[2], type_, run)
    pos, count = source(i.operands[3], "u32", run), source(i.operands[4], "u32", run)
    put = destination(i.operands[0], type_, run)

    def step(active, group):
        p, n = (pos(active) & 0xFF).astype(np.uint64), (count(active) & 0xFF).astype(np.uint64)
        n = np.minimum(n, width)
        mask = np.where(
            n >= 64, np.uint64(2**64 - 1), (np.uint64(1) << np.minimum(n, 63)) - np.uint64(1)
        )
        mask = np.where(p >= width, 0, mask << np.minimum(p, 63))
        value = (b(active).astype(np.uint64) & ~mask) | (
            (a(active).astype(np.uint64) << np.minimum(p, 63)) & mask
        )
        put(active, value.astype(NP[type_]))

    return step


@op("popc", "clz", "brev", "ffs", "bfind")
def _count_bits(i, run, here):
    type_ = type_of(i.opcode)
    width = 8 * SIZES[type_]
    a = source(i.operands[1], type_, run)
    put = destination(i.operands[0], "u32" if i.opcode[0] != "brev" else type_, run)

    def one(v: int) -> int:
        if i.opcode[0] == "popc":
            return bin(v).count("1")
        if i.opcode[0] == "clz":
            return width - v.bit_length()
        if i.opcode[0] == "bfind":
            if not v:
                return 0xFFFFFFFF
            return width - v.bit_length() if "shiftamt" in i.opcode else v.bit_length() - 1
        return int(format(v, f"0{width}b")[::-1], 2)

    def step(active, group):
        put(
            active,
            np.array([one(int(v)) for v in a(active)], np.uint64).astype(
                np.uint32 if i.opcode[0] != "brev" else NP[type_]
            ),
        )

    return step
