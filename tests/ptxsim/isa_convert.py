"""Comparisons, selection, moves and conversions, per thread."""

from __future__ import annotations

import numpy as np

from .dispatch import op
from .isa_arith import elementwise
from .memory import LOCAL_WINDOW, SHARED_WINDOW
from .syntax import SIZES, Pair, Symbol, Vec
from .values import NP, UINT, Unsupported, destination, f32_to_bf16, source, type_of

_COMPARE = {
    "eq": np.equal,
    "ne": np.not_equal,
    "lt": np.less,
    "le": np.less_equal,
    "gt": np.greater,
    "ge": np.greater_equal,
    "lo": np.less,
    "ls": np.less_equal,
    "hi": np.greater,
    "hs": np.greater_equal,
}


def _comparison(name: str):
    if name in _COMPARE:
        return _COMPARE[name]
    if name in ("num", "nan"):
        if name == "nan":
            return lambda a, b: np.isnan(a) | np.isnan(b)
        return lambda a, b: ~(np.isnan(a) | np.isnan(b))
    if name.endswith("u") and name[:-1] in _COMPARE:
        return lambda a, b: _COMPARE[name[:-1]](a, b) | np.isnan(a) | np.isnan(b)
    raise Unsupported(f"comparison {name}")


@op("setp", "set")
def _setp(i, run, here):
    type_ = type_of(i.opcode)
    compare = _comparison(i.opcode[1])
    if type_ in ("f16x2", "bf16x2"):
        raise Unsupported("packed comparison")
    a, b = source(i.operands[1], type_, run), source(i.operands[2], type_, run)
    combine = next((part for part in i.opcode[2:] if part in ("and", "or", "xor")), None)
    c = source(i.operands[3], "pred", run) if combine else None
    merge = {"and": np.logical_and, "or": np.logical_or, "xor": np.logical_xor}.get(combine)
    if i.opcode[0] == "set":
        out_type = next(part for part in i.opcode if part in SIZES)
        put = destination(i.operands[0], out_type, run)

        def step_set(active, group):
            true = compare(a(active), b(active))
            true = merge(true, c(active)) if combine else true
            put(
                active,
                np.where(true, 1.0, 0.0).astype(np.float32)
                if out_type == "f32"
                else np.where(true, -1, 0).astype(np.int64).astype(np.uint32),
            )

        return step_set
    first = i.operands[0].first if isinstance(i.operands[0], Pair) else i.operands[0]
    put = destination(first, "pred", run)
    put_second = (
        destination(i.operands[0].second, "pred", run) if isinstance(i.operands[0], Pair) else None
    )

    def step(active, group):
        true = compare(a(active), b(active))
        first, second = true, ~true
        if combine:
            other = c(active)
            first, second = merge(first, other), merge(second, other)
        put(active, first)
        if put_second:
            put_second(active, second)

    return step


@op("selp")
def _selp(i, run, here):
    type_ = type_of(i.opcode)
    a, b, p = (
        source(i.operands[1], type_, run),
        source(i.operands[2], type_, run),
        source(i.operands[3], "pred", run),
    )
    put = destination(i.operands[0], type_, run)

    def step(active, group):
        put(active, np.where(p(active), a(active), b(active)))

    return step


@op("mov")
def _mov(i, run, here):
    type_ = type_of(i.opcode)
    to, from_ = i.operands
    if isinstance(from_, Vec):  # pack
        part = SIZES[type_] // len(from_.items)
        parts = [source(o, f"b{8 * part}", run) for o in from_.items]
        put = destination(to, type_, run)

        def pack(active, group):
            value = np.zeros(active.size, np.uint64)
            for k, get in enumerate(parts):
                value |= get(active).astype(np.uint64) << np.uint64(8 * part * k)
            put(active, value.astype(UINT[SIZES[type_]]).view(NP[type_]))

        return pack
    if isinstance(to, Vec):  # unpack
        part = SIZES[type_] // len(to.items)
        get, puts = (
            source(from_, f"b{8 * SIZES[type_]}", run),
            [destination(o, f"b{8 * part}", run) for o in to.items],
        )

        def unpack(active, group):
            value = get(active)
            for k, put in enumerate(puts):
                put(active, (value >> value.dtype.type(8 * part * k)).astype(UINT[part]))

        return unpack
    if isinstance(from_, Symbol) and from_.name in run.symbols:
        _, start = run.symbols[from_.name]
        put = destination(to, type_, run)
        return lambda active, group: put(
            active, np.full(active.size, start, np.uint64).astype(NP[type_])
        )
    return elementwise(i, run, type_, lambda a: a, 1)


@op("cvta")
def _cvta(i, run, here):
    type_ = type_of(i.opcode)
    window = {"shared": SHARED_WINDOW, "local": LOCAL_WINDOW}.get(
        next((p for p in i.opcode if p in ("shared", "local", "global", "const", "param")), ""), 0
    )
    toward = "to" in i.opcode
    if isinstance(i.operands[1], Symbol):
        start = run.symbols[i.operands[1].name][1]
        put = destination(i.operands[0], type_, run)
        return lambda active, group: put(
            active, np.full(active.size, start + (0 if toward else window), NP[type_])
        )
    return elementwise(
        i, run, type_, lambda a: a - NP[type_](window) if toward else a + NP[type_](window), 1
    )


_FLOATS = ("f16", "bf16", "f32", "f64", "tf32")
_ROUND_INT = {"rni": np.rint, "rzi": np.trunc, "rmi": np.floor, "rpi": np.ceil}


@op("cvt")
def _cvt(i, run, here):
    types = [part for part in i.opcode if part in SIZES]
    to, from_ = types[0], types[-1]
    if to in ("f16x2", "bf16x2"):  # cvt.rn.f16x2.f32 d, upper, lower
        upper, lower, put = (
            source(i.operands[1], "f32", run),
            source(i.operands[2], "f32", run),
            destination(i.operands[0], "b32", run),
        )
        half = (lambda v: v.astype(np.float16).view(np.uint16)) if to == "f16x2" else f32_to_bf16
        relu = "relu" in i.opcode

        def pack(active, group):
            u, l = upper(active), lower(active)
            if relu:
                u, l = np.maximum(u, 0), np.maximum(l, 0)
            put(active, (half(u).astype(np.uint32) << np.uint32(16)) | half(l).astype(np.uint32))

        return pack
    rounding = next((_ROUND_INT[p] for p in i.opcode if p in _ROUND_INT), None)
    saturate = "sat" in i.opcode

    def convert(value):
        if from_ in _FLOATS and to in _FLOATS:
            value = rounding(value) if rounding else value
            if to == "tf32":
                bits = np.ascontiguousarray(value, np.float32).view(np.uint32)
                return ((bits + np.uint32(0x1000)) & np.uint32(0xFFFFE000)).view(np.float32)
            if "rz" in i.opcode and to in ("f16", "bf16"):
                raise Unsupported("round toward zero to half")
            value = np.clip(value, 0, 1) if saturate else value
            if to == "bf16":
                return np.asarray(value, np.float32)
            return np.asarray(value).astype(NP[to])
        if from_ in _FLOATS:
            whole = rounding(np.asarray(value, np.float64))
            info = np.iinfo(NP[to])
            whole = np.where(np.isnan(whole), 0, np.clip(whole, float(info.min), float(info.max)))
            high = whole >= float(info.max)
            return np.where(high, info.max, np.where(high, 0, whole).astype(NP[to]))
        if to in _FLOATS:
            return np.asarray(value).astype(np.float32 if to == "bf16" else NP[to])
        if saturate:
            info = np.iinfo(NP[to])
            return np.clip(value.astype(np.int64), info.min, info.max).astype(NP[to])
        return value.astype(NP[to])

    get, put = source(i.operands[1], from_, run), destination(i.operands[0], to, run)
    return lambda active, group: put(active, convert(get(active)))
