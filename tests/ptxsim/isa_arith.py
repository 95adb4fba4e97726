"""Arithmetic on integers and floats, per thread ("PTX ISA" chapter 9.7).

f32 fma is computed in float64 and rounded once (exact but for double rounding), approximate
functions are computed exactly.
"""

from __future__ import annotations

import numpy as np

from .dispatch import op
from .syntax import SIZES
from .values import NP, Unsupported, bf16_to_f32, destination, f32_to_bf16, source, type_of


def elementwise(instr, run, type_, function, arity, out_type=None):
    sources = [source(o, type_, run) for o in instr.operands[1 : 1 + arity]]
    put = destination(instr.operands[0], out_type or type_, run)

    def step(active, group):
        put(active, function(*(get(active) for get in sources)))

    return step


def _float_modifiers(opcode, function):
    """Wrap for .sat (clamp to [0, 1]) and .relu."""
    if "sat" in opcode:
        return lambda *a: np.clip(function(*a), 0, 1)
    if "relu" in opcode:
        return lambda *a: np.maximum(function(*a), 0)
    return function


def _directed(opcode):
    """.rz, .rm or .rp of an f32 operation, else None; other types round to nearest only."""
    way = next((part for part in opcode if part in ("rz", "rm", "rp")), None)
    if way and type_of(opcode) != "f32":
        raise Unsupported(".".join(opcode))
    return way


def _toward(way: str, function, values):
    """`function` of float32 values, rounded in one direction.

    It is taken in float64; what that rounding left over decides where float32 holds the result
    exactly (a sum of a product and a number; other functions are taken as exact).
    """
    wide = [v.astype(np.float64) for v in values]
    exact = function(*wide)
    near = exact.astype(np.float32)
    rest = exact - near
    if len(wide) == 3:
        product = wide[0] * wide[1]
        part = exact - product
        lost = (product - (exact - part)) + (wide[2] - part)
        rest = np.where(rest == 0, lost, rest)
    down = {"rm": rest < 0, "rp": False, "rz": (rest < 0) & (exact > 0)}[way]
    up = {"rm": False, "rp": rest > 0, "rz": (rest > 0) & (exact < 0)}[way]
    low, high = (np.nextafter(near, np.float32(end)) for end in (-np.inf, np.inf))
    return np.where(down, low, np.where(up, high, near))


def _saturated(function, type_):
    """add.sat.s32 and its like: exact in int64, then clamped."""
    info = np.iinfo(NP[type_])

    def apply(*values):
        exact = function(*(v.astype(np.int64) for v in values))
        return exact.clip(info.min, info.max).astype(NP[type_])

    return apply


def _round_to_odd(values: np.ndarray) -> np.ndarray:
    """float64 -> float32 so that a second rounding, to bf16, gives what one rounding would."""
    near = values.astype(np.float32)
    bits, wide = near.view(np.uint32).copy(), near.astype(np.float64)
    inexact = (wide != values) & np.isfinite(wide)
    bits -= (inexact & (np.abs(wide) > np.abs(values))).astype(np.uint32)
    return (bits | inexact.astype(np.uint32)).view(np.float32)


def halves_of(words: np.ndarray, type_: str) -> list[np.ndarray]:
    """The lower and the upper half of f16x2 or bf16x2 words, as float64."""
    halves = [(words >> np.uint32(shift)).astype(np.uint16) for shift in (0, 16)]
    if type_ == "f16x2":
        return [half.view(np.float16).astype(np.float64) for half in halves]
    return [bf16_to_f32(half).astype(np.float64) for half in halves]


def packed(function, type_):
    """Apply `function` on float64 to both halves of f16x2 / bf16x2 words."""

    def bits(values):
        if type_ == "f16x2":
            return values.astype(np.float16).view(np.uint16).astype(np.uint32)
        return f32_to_bf16(_round_to_odd(values)).astype(np.uint32)

    def apply(*words):
        low, high = zip(*(halves_of(w, type_) for w in words), strict=True)
        return bits(function(*low)) | bits(function(*high)) << np.uint32(16)

    return apply


#: float32 operations that IEEE arithmetic rounds once by itself
_EXACT = {"add", "sub", "mul", "min", "max", "abs", "neg", "sqrt", "div"}


def _arith(instr, run, function, arity):
    type_ = type_of(instr.opcode)
    if type_[0] in "su":
        if "sat" in instr.opcode:
            function = _saturated(function, type_)
        return elementwise(instr, run, type_, function, arity)
    way = _directed(instr.opcode)
    if way:
        exact = function

        def function(*values):
            return _toward(way, exact, values)

    function = _float_modifiers(instr.opcode, function)
    if type_ in ("f16x2", "bf16x2"):
        return elementwise(instr, run, type_, packed(function, type_), arity)
    if type_ == "f32" and (way or instr.opcode[0] in _EXACT):
        return elementwise(instr, run, type_, function, arity)
    if type_ in ("f16", "bf16", "f32"):
        dtype = np.float32 if type_ != "f16" else np.float16

        def wide(*a):
            value = np.asarray(function(*(np.asarray(v, np.float64) for v in a)))
            return _round_to_odd(value) if type_ == "bf16" else value.astype(dtype)

        return elementwise(instr, run, type_, wide, arity)
    return elementwise(instr, run, type_, function, arity)


@op("add")
def _add(i, run, here):
    if "cc" in i.opcode:
        raise Unsupported("carry")
    return _arith(i, run, lambda a, b: a + b, 2)


@op("sub")
def _sub(i, run, here):
    return _arith(i, run, lambda a, b: a - b, 2)


def _minmax(pick_number, pick_nan):
    def handler(i, run, here):
        function = pick_nan if "NaN" in i.opcode else pick_number
        return _arith(i, run, function, 2)

    return handler


op("min")(_minmax(np.fmin, np.minimum))
op("max")(_minmax(np.fmax, np.maximum))


@op("abs")
def _abs(i, run, here):
    return _arith(i, run, np.abs, 1)


@op("neg")
def _neg(i, run, here):
    return _arith(i, run, np.negative, 1)


_WIDER = {"u16": "u32", "s16": "s32", "u32": "u64", "s32": "s64"}


@op("mul", "mad", "mul24", "mad24")
def _mul(i, run, here):
    type_, arity = type_of(i.opcode), 2 if i.opcode[0].startswith("mul") else 3
    if type_[0] in "fb":
        return _arith(
            i, run, (lambda a, b: a * b) if arity == 2 else (lambda a, b, c: a * b + c), arity
        )
    a, b = source(i.operands[1], type_, run), source(i.operands[2], type_, run)
    out_type = _WIDER[type_] if "wide" in i.opcode else type_
    c = source(i.operands[3], out_type, run) if arity == 3 else None
    put = destination(i.operands[0], out_type, run)

    def step(active, group):
        x, y = a(active), b(active)
        if "wide" in i.opcode:
            value = x.astype(NP[out_type]) * y.astype(NP[out_type])
        elif "hi" in i.opcode:
            if type_ in ("u64", "s64"):
                value = np.array(
                    [(int(p) * int(q)) >> 64 & ((1 << 64) - 1) for p, q in zip(x, y, strict=True)],
                    np.uint64,
                ).view(NP[type_])
            else:
                wide = NP[_WIDER[type_]]
                value = ((x.astype(wide) * y.astype(wide)) >> wide(8 * SIZES[type_])).astype(
                    NP[type_]
                )
        else:
            value = x * y
        put(active, value + c(active) if c else value)

    return step


@op("fma")
def _fma(i, run, here):
    return _arith(i, run, lambda a, b, c: a * b + c, 3)


@op("div", "rem")
def _div(i, run, here):
    type_ = type_of(i.opcode)
    if type_[0] == "f":
        return _arith(i, run, lambda a, b: a / b, 2)

    def divide(a, b):
        safe = np.where(b == 0, b.dtype.type(1), b)
        quotient = a // safe  # rounded down; PTX rounds toward zero
        quotient = quotient + ((quotient * safe != a) & ((a < 0) != (safe < 0))).astype(a.dtype)
        if i.opcode[0] == "rem":
            return a - quotient * safe
        return np.where(b == 0, np.array(-1).astype(a.dtype), quotient)

    return elementwise(i, run, type_, divide, 2)


for _name, _function in {
    "rcp": lambda a: 1 / a,
    "sqrt": np.sqrt,
    "rsqrt": lambda a: 1 / np.sqrt(a),
    "ex2": np.exp2,
    "lg2": np.log2,
    "sin": np.sin,
    "cos": np.cos,
    "tanh": np.tanh,
}.items():
    op(_name)(lambda i, run, here, f=_function: _arith(i, run, f, 1))


@op("dp4a", "dp2a")
def _dot(i, run, here):
    """d = c + the dot product of 4 bytes with 4 (dp4a), or of 2 halves with 2 bytes (dp2a)."""
    a_type, b_type = (part for part in i.opcode if part in SIZES)
    a, b = source(i.operands[1], "b32", run), source(i.operands[2], "b32", run)
    signed = "s32" if "s32" in (a_type, b_type) else "u32"
    c, put = source(i.operands[3], signed, run), destination(i.operands[0], signed, run)
    bytes_of = {"s32": np.int8, "u32": np.uint8}
    first = bytes_of[a_type]
    if i.opcode[0] == "dp2a":
        first = {"s32": np.int16, "u32": np.uint16}[a_type]

    def step(active, group):
        left = np.ascontiguousarray(a(active)).view(first).reshape(active.size, -1)
        right = np.ascontiguousarray(b(active)).view(bytes_of[b_type]).reshape(active.size, 4)
        if i.opcode[0] == "dp2a":
            right = right[:, 2:] if "hi" in i.opcode else right[:, :2]
        total = (left.astype(np.int64) * right).sum(1) + c(active)
        put(active, total.astype(NP[signed]))

    return step


@op("copysign")
def _copysign(i, run, here):
    return elementwise(i, run, type_of(i.opcode), lambda a, b: np.copysign(b, a), 2)


@op("sad")
def _sad(i, run, here):
    def function(a, b, c):
        return c + np.where(a < b, b - a, a - b)

    return elementwise(i, run, type_of(i.opcode), function, 3)
