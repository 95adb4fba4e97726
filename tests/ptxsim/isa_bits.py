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


def _low_ones(n: np.ndarray) -> np.ndarray:
    ones = (np.uint64(1) << np.minimum(n, 63)) - np.uint64(1)
    return np.where(n >= 64, np.uint64(2**64 - 1), ones)


@op("bfe")
def _bfe(i, run, here):
    type_ = type_of(i.opcode)
    width = np.uint64(8 * SIZES[type_])
    unsigned = "u" + type_[1:]
    a, pos, count = (
        source(i.operands[1], unsigned, run),
        source(i.operands[2], "u32", run),
        source(i.operands[3], "u32", run),
    )
    put = destination(i.operands[0], unsigned, run)

    def step(active, group):
        x, p = a(active).astype(np.uint64), (pos(active) & 0xFF).astype(np.uint64)
        n = np.minimum((count(active) & 0xFF).astype(np.uint64), width)
        inside = np.minimum(n, np.where(p >= width, 0, width - p))  # the rest is sign
        mask = _low_ones(inside)
        value = (x >> np.minimum(p, 63)) & mask
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


def _bit_length(x: np.ndarray) -> np.ndarray:
    high = (x.astype(np.uint64) >> np.uint64(32)).astype(np.float64)
    low = (x.astype(np.uint64) & np.uint64(0xFFFFFFFF)).astype(np.float64)
    return np.where(high > 0, 32 + np.frexp(high)[1], np.frexp(low)[1])


def _reverse(x: np.ndarray) -> np.ndarray:
    width = 8 * x.dtype.itemsize
    for shift in (1 << k for k in range(width.bit_length() - 1)):
        mask = x.dtype.type(sum(1 << k for k in range(width) if not k & shift))
        n = x.dtype.type(shift)
        x = (x >> n & mask) | (x & mask) << n
    return x


@op("popc", "clz", "brev", "bfind")
def _count_bits(i, run, here):
    type_, name = type_of(i.opcode), i.opcode[0]
    width = 8 * SIZES[type_]
    a = source(i.operands[1], type_, run)
    put = destination(i.operands[0], "u32" if name != "brev" else type_, run)

    def find(x):
        x = np.where(x < 0, ~x, x) if type_[0] == "s" else x
        top = _bit_length(x) - 1
        return np.where(top < 0, -1, width - 1 - top if "shiftamt" in i.opcode else top)

    function = {
        "popc": np.bitwise_count,
        "clz": lambda x: width - _bit_length(x),
        "brev": _reverse,
        "bfind": find,
    }[name]

    def step(active, group):
        value = function(a(active))
        put(active, value if name == "brev" else value.astype(np.int64).astype(np.uint32))

    return step


def _nth_set(mask: int, base: int, offset: int) -> int:
    """fns: the n-th set bit of `mask`, from bit `base` up (n > 0) or down (n < 0)."""
    if offset == 0:
        return base if mask >> base & 1 else 0xFFFFFFFF
    places = range(base, 32) if offset > 0 else range(base, -1, -1)
    found = [k for k in places if mask >> k & 1]
    return found[abs(offset) - 1] if abs(offset) <= len(found) else 0xFFFFFFFF


@op("fns")
def _fns(i, run, here):
    gets = [
        source(o, type_, run)
        for o, type_ in zip(i.operands[1:], ("u32", "u32", "s32"), strict=True)
    ]
    put = destination(i.operands[0], "b32", run)

    def step(active, group):
        lanes = zip(*(get(active).tolist() for get in gets), strict=True)
        put(active, np.array([_nth_set(m, b & 31, n) for m, b, n in lanes], np.uint32))

    return step
