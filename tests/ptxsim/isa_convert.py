"""Comparisons, selection, moves and conversions, per thread."""

from __future__ import annotations

import numpy as np

from .dispatch import op
from .isa_arith import elementwise, halves_of
from .memory import LOCAL_WINDOW, PARAM_WINDOW, SHARED_WINDOW
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


def _ones(true: np.ndarray, type_: str) -> np.ndarray:
    """The result of `set`: 1.0 or, as an integer, all bits."""
    if type_ in _FLOATS:
        return true.astype(np.float32 if type_ == "bf16" else NP[type_])
    return np.where(true, -1, 0).astype(np.int64).astype(NP[type_])


def _compare_packed(i, run, type_: str):
    """setp.gt.f16x2 p|q, a, b (lower, upper half); set.gt.{f16x2,u32}.f16x2 d, a, b."""
    compare, to = _comparison(i.opcode[1]), i.operands[0]
    if any(part in ("and", "or", "xor") for part in i.opcode[2:]):
        raise Unsupported("packed comparison with a predicate")
    a, b = (source(o, type_, run) for o in i.operands[1:3])

    def both(active):
        sides = (halves_of(get(active), type_) for get in (a, b))
        return [compare(x, y) for x, y in zip(*sides, strict=True)]

    if i.opcode[0] == "setp":
        puts = [destination(o, "pred", run) for o in (to.first, to.second)]

        def step(active, group):
            for put, true in zip(puts, both(active), strict=True):
                put(active, true)

        return step
    one = {"f16x2": 0x3C00, "bf16x2": 0x3F80}.get(type_of(i.opcode, 0), 0xFFFF)
    put_word = destination(to, "b32", run)

    def step_set(active, group):
        low, high = (np.where(true, np.uint32(one), np.uint32(0)) for true in both(active))
        put_word(active, low | high << np.uint32(16))

    return step_set


@op("setp", "set")
def _setp(i, run, here):
    type_ = type_of(i.opcode)
    if type_ in ("f16x2", "bf16x2"):
        return _compare_packed(i, run, type_)
    compare = _comparison(i.opcode[1])
    a, b = source(i.operands[1], type_, run), source(i.operands[2], type_, run)
    combine = next((part for part in i.opcode[2:] if part in ("and", "or", "xor")), None)
    c = source(i.operands[3], "pred", run) if combine else None
    merge = {"and": np.logical_and, "or": np.logical_or, "xor": np.logical_xor}.get(combine)
    pair = isinstance(i.operands[0], Pair)
    first = i.operands[0].first if pair else i.operands[0]
    out_type = type_of(i.opcode, 0) if i.opcode[0] == "set" else "pred"
    put = destination(first, out_type, run)
    put_second = destination(i.operands[0].second, "pred", run) if pair else None

    def step(active, group):
        true = compare(a(active), b(active))
        first, second = true, ~true
        if combine:
            other = c(active)
            first, second = merge(first, other), merge(second, other)
        put(active, first if out_type == "pred" else _ones(first, out_type))
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
    window = {"shared": SHARED_WINDOW, "local": LOCAL_WINDOW, "param": PARAM_WINDOW}.get(
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


_LARGEST = {"f16": 65504.0, "f16x2": 65504.0, "tf32": 3.4011621342146535e38}
_LARGEST |= dict.fromkeys(("bf16", "bf16x2"), 3.3895313892515355e38)


def _to_tf32(values: np.ndarray, opcode) -> np.ndarray:
    """19 bits: .rna rounds halves away from zero, .rn to even, .rz cuts off."""
    bits = np.ascontiguousarray(values, np.float32).view(np.uint32)
    if "rna" in opcode:
        bits = bits + np.uint32(0x1000)
    elif "rn" in opcode:
        bits = bits + np.uint32(0xFFF) + (bits >> np.uint32(13) & np.uint32(1))
    rounded = (bits & np.uint32(0xFFFFE000)).view(np.float32)
    return np.where(np.isfinite(values), rounded, values)


def _to_float(to: str, opcode):
    """A function: values -> floats of type `to` (bf16 as float32 that destinations round)."""
    if any(part in ("rz", "rm", "rp") for part in opcode) and to != "tf32":
        raise Unsupported(".".join(opcode))
    dtype = np.float32 if to in ("bf16", "bf16x2") else np.float16 if to == "f16x2" else NP[to]

    def convert(value):
        if "relu" in opcode:
            value = np.maximum(value, 0)
        if "sat" in opcode:
            value = np.clip(value, 0, 1)
        if "satfinite" in opcode:
            value = np.clip(value, -_LARGEST[to], _LARGEST[to])
        return _to_tf32(value, opcode) if to == "tf32" else np.asarray(value).astype(dtype)

    return convert


def _cvt_packed(i, run, to: str):
    """cvt.rn.f16x2.f32 d, upper, lower."""
    upper, lower = (source(o, "f32", run) for o in i.operands[1:3])
    put, convert = destination(i.operands[0], "b32", run), _to_float(to, i.opcode)

    def half(values):
        value = convert(values)
        bits = value.view(np.uint16) if to == "f16x2" else f32_to_bf16(value)
        return bits.astype(np.uint32)

    def pack(active, group):
        put(active, half(upper(active)) << np.uint32(16) | half(lower(active)))

    return pack


def _to_integer(value, to: str, rounding):
    """Rounded, then clamped to the type; NaN is 0."""
    whole = rounding(np.asarray(value, np.float64))
    info = np.iinfo(NP[to])
    whole = np.where(np.isnan(whole), 0, np.clip(whole, float(info.min), float(info.max)))
    high = whole >= float(info.max)
    return np.where(high, info.max, np.where(high, 0, whole).astype(NP[to]))


@op("cvt")
def _cvt(i, run, here):
    types = [part for part in i.opcode if part in SIZES]
    to, from_ = types[0], types[-1]
    if to in ("f16x2", "bf16x2"):
        return _cvt_packed(i, run, to)
    rounding = next((_ROUND_INT[p] for p in i.opcode if p in _ROUND_INT), None)
    to_float = _to_float(to, i.opcode) if to in _FLOATS else None

    def convert(value):
        if to_float:
            return to_float(rounding(value) if rounding else value)
        if from_ in _FLOATS:
            return _to_integer(value, to, rounding)
        if "sat" in i.opcode:
            info = np.iinfo(NP[to])
            top = min(info.max, np.iinfo(value.dtype).max)
            low = max(info.min, np.iinfo(value.dtype).min)
            value = np.clip(value, value.dtype.type(low), value.dtype.type(top))
        return value.astype(NP[to])

    if from_ in _FLOATS and not to_float and rounding is None:
        raise Unsupported("a float to an integer without a rounding")
    get, put = source(i.operands[1], from_, run), destination(i.operands[0], to, run)
    return lambda active, group: put(active, convert(get(active)))


_TESTS = {
    "finite": np.isfinite,
    "infinite": np.isinf,
    "number": lambda a: ~np.isnan(a),
    "notanumber": np.isnan,
    "normal": lambda a: np.isfinite(a) & (np.abs(a) >= np.finfo(a.dtype).tiny),
    "subnormal": lambda a: (a != 0) & (np.abs(a) < np.finfo(a.dtype).tiny),
}


@op("testp")
def _testp(i, run, here):
    get, put = (
        source(i.operands[1], type_of(i.opcode), run),
        destination(i.operands[0], "pred", run),
    )
    return lambda active, group: put(active, _TESTS[i.opcode[1]](get(active)))


@op("slct")
def _slct(i, run, here):
    """d = a where c >= 0, else b."""
    type_, by = (part for part in i.opcode if part in SIZES)
    a, b, c = source(i.operands[1], type_, run), source(i.operands[2], type_, run), i.operands[3]
    get, put = source(c, by, run), destination(i.operands[0], type_, run)
    return lambda active, group: put(active, np.where(get(active) >= 0, a(active), b(active)))
