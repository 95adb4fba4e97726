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


def _packed(function, type_):
    """Apply `function` on float32/64 to both halves of f16x2 / bf16x2 words."""

    def apply(*words):
        out = []
        for shift in (0, 16):
            halves = [
                ((w >> np.uint32(shift)) & np.uint32(0xFFFF)).astype(np.uint16) for w in words
            ]
            floats = [
                h.view(np.float16).astype(np.float64)
                if type_ == "f16x2"
                else bf16_to_f32(h).astype(np.float64)
                for h in halves
            ]
            value = function(*floats)
            bits = (
                value.astype(np.float16).view(np.uint16)
                if type_ == "f16x2"
                else f32_to_bf16(value.astype(np.float32))
            )
            out.append(bits.astype(np.uint32) << np.uint32(shift))
        return out[0] | out[1]

    return apply


#: float32 operations that IEEE arithmetic rounds once by itself
_EXACT = {"add", "sub", "mul", "min", "max", "abs", "neg", "sqrt", "div"}


def _arith(instr, run, function, arity):
    type_ = type_of(instr.opcode)
    function = _float_modifiers(instr.opcode, function)
    if type_ in ("f16x2", "bf16x2"):
        return elementwise(instr, run, type_, _packed(function, type_), arity)
    if type_ == "f32" and instr.opcode[0] in _EXACT:
        return elementwise(instr, run, type_, function, arity)
    if type_ in ("f16", "bf16", "f32"):
        dtype = np.float32 if type_ != "f16" else np.float16

        def wide(*a):
            return np.asarray(function(*(np.asarray(v, np.float64) for v in a))).astype(dtype)

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
    if type_[0] in "fb" and type_ not in ("b16", "b32", "b64"):
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
        safe = np.where(b == 0, 1, b)
        quotient = (
            (np.sign(a) * np.sign(safe) * (np.abs(a) // np.abs(safe))).astype(a.dtype)
            if type_[0] == "s"
            else a // safe
        )
        return (
            np.where(b == 0, np.array(-1).astype(a.dtype), quotient)
            if i.opcode[0] == "div"
            else a - quotient * safe
        )

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
