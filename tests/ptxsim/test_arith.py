"""Every arithmetic, bit and conversion instruction that the kernels use, against numpy."""

from __future__ import annotations

import math
from fractions import Fraction

import numpy as np
import pytest

from tests.ptxsim import Device, Unsupported, bf16_to_f32, f32_to_bf16, parse

LANES = 64


def header(parameters: int) -> str:
    names = ", ".join(f".param .u64 p{k}" for k in range(parameters))
    return f".version 8.0\n.target sm_80\n.address_size 64\n.visible .entry k({names})\n"


def evaluate(instruction: str, inputs: list[np.ndarray], dtype) -> np.ndarray:
    """Run one instruction, `%d` from `%a`, `%b`, `%c`, with one element of the inputs per lane."""
    bits = {1: "b16", 2: "b16", 4: "b32", 8: "b64"}
    body, size = [".reg .b64 %rd<9>;", ".reg .b32 %t, %x;"], np.dtype(dtype).itemsize
    body += ["mov.u32 %t, %tid.x;", f".reg .{bits[size]} %d;", ".reg .pred %p, %q;"]
    for k, (name, array) in enumerate(zip("abc", inputs, strict=False)):
        n = array.itemsize
        body += [f".reg .{bits[n]} %{name};", f"ld.param.u64 %rd{k}, [p{k}];"]
        body += [f"mad.wide.u32 %rd{k}, %t, {n}, %rd{k};"]
        body += [f"ld.global.{'u' if array.dtype.kind == 'u' else 'b'}{8 * n} %{name}, [%rd{k}];"]
    end = len(inputs)
    body += [instruction, f"ld.param.u64 %rd{end}, [p{end}];"]
    body += [
        f"mad.wide.u32 %rd{end}, %t, {size}, %rd{end};",
        f"st.global.b{8 * size} [%rd{end}], %d;",
    ]
    text = header(end + 1) + "{\n" + "\n".join(body) + "\nret;\n}"
    device = Device(memory=1 << 16)
    out = device.empty(LANES, dtype)
    device.launch(parse(text), "k", 1, LANES, [*map(device.upload, inputs), out])
    return out.array


def random_words(*seeds: int) -> list[np.ndarray]:
    """All bits random, with the corners 0, 1, -1, the largest and the smallest in front."""
    corners = np.array([0, 1, 0xFFFFFFFF, 0x7FFFFFFF, 0x80000000], np.uint32)
    out = []
    for seed in seeds:
        words = np.random.default_rng(seed).integers(0, 1 << 32, LANES, dtype=np.uint32)
        words[5 * seed : 5 * seed + 5] = corners
        out.append(words)
    return out


def signed(x: int) -> int:
    return x - (1 << 32) if x >> 31 else x


def funnel_left(a: int, b: int, c: int) -> int:
    return (((b << 32) | a) << (c & 31)) >> 32


def prmt(a: int, b: int, c: int) -> int:
    pool, out = [(b << 32 | a) >> 8 * k & 255 for k in range(8)], 0
    for k in range(4):
        nibble = c >> 4 * k & 15
        byte = pool[nibble & 7]
        out |= ((255 if byte & 128 else 0) if nibble & 8 else byte) << 8 * k
    return out


def bfe_s32(a: int, b: int, c: int) -> int:
    position, length = b & 255, c & 255
    sign = signed(a) >> min(position + length - 1, 31) & 1 if length else 0
    bits = [a >> k & 1 if k < 32 else sign for k in range(position, position + min(length, 32))]
    return sum((bits[k] if k < len(bits) else sign) << k for k in range(32))


def dp4a_s32(a: int, b: int, c: int) -> int:
    def bytes_of(x):
        return [(x >> 8 * k & 255) - 256 * (x >> 8 * k + 7 & 1) for k in range(4)]

    return signed(c) + sum(p * q for p, q in zip(bytes_of(a), bytes_of(b), strict=True))


def sat_add(a: int, b: int, c: int) -> int:
    return min(max(signed(a) + signed(b), -(1 << 31)), (1 << 31) - 1)


def bfind_s32(a: int, b: int, c: int) -> int:
    return (~a & 0xFFFFFFFF if a >> 31 else a).bit_length() - 1


INTEGER = {
    "add.s32 %d, %a, %b;": lambda a, b, c: a + b,
    "add.sat.s32 %d, %a, %b;": sat_add,
    "sub.s32 %d, %a, %b;": lambda a, b, c: a - b,
    "mul.lo.s32 %d, %a, %b;": lambda a, b, c: a * b,
    "mul.hi.s32 %d, %a, %b;": lambda a, b, c: signed(a) * signed(b) >> 32,
    "mul.hi.u32 %d, %a, %b;": lambda a, b, c: a * b >> 32,
    "mad.lo.s32 %d, %a, %b, %c;": lambda a, b, c: a * b + c,
    "mad.hi.s32 %d, %a, %b, %c;": lambda a, b, c: (signed(a) * signed(b) >> 32) + c,
    "mad.hi.u32 %d, %a, %b, %c;": lambda a, b, c: (a * b >> 32) + c,
    "min.s32 %d, %a, %b;": lambda a, b, c: min(signed(a), signed(b)),
    "max.u32 %d, %a, %b;": lambda a, b, c: max(a, b),
    "popc.b32 %d, %a;": lambda a, b, c: a.bit_count(),
    "clz.b32 %d, %a;": lambda a, b, c: 32 - a.bit_length(),
    "brev.b32 %d, %a;": lambda a, b, c: int(f"{a:032b}"[::-1], 2),
    "bfind.u32 %d, %a;": lambda a, b, c: a.bit_length() - 1,
    "bfind.s32 %d, %a;": bfind_s32,
    "bfind.shiftamt.u32 %d, %a;": lambda a, b, c: 32 - a.bit_length() if a else -1,
    "and.b32 %b, %b, 31; bfe.u32 %d, %a, %b, 7;": lambda a, b, c: a >> (b & 31) & 127,
    "and.b32 %b, %b, 63; and.b32 %c, %c, 63; bfe.s32 %d, %a, %b, %c;": lambda a, b, c: bfe_s32(
        a, b & 63, c & 63
    ),
    "bfi.b32 %d, %a, %b, 5, 9;": lambda a, b, c: b & ~(511 << 5) | (a & 511) << 5,
    "prmt.b32 %d, %a, %b, %c;": prmt,
    "lop3.b32 %d, %a, %b, %c, 0xE8;": lambda a, b, c: (a & b) | (a & c) | (b & c),
    "lop3.b32 %d, %a, %b, %c, 0x96;": lambda a, b, c: a ^ b ^ c,
    "shf.l.wrap.b32 %d, %a, %b, %c;": funnel_left,
    "shf.r.wrap.b32 %d, %a, %b, %c;": lambda a, b, c: (b << 32 | a) >> (c & 31),
    "shf.r.clamp.b32 %d, %a, %b, %c;": lambda a, b, c: (b << 32 | a) >> min(c, 32),
    "shl.b32 %d, %a, %c;": lambda a, b, c: a << c if c < 32 else 0,
    "shr.s32 %d, %a, %c;": lambda a, b, c: signed(a) >> min(c, 31),
    "dp4a.s32.s32 %d, %a, %b, %c;": dp4a_s32,
    "cvt.sat.s8.s32 %x, %a; cvt.s32.s8 %d, %x;": lambda a, b, c: min(max(signed(a), -128), 127),
    "cvt.u32.u8 %d, %a;": lambda a, b, c: a & 255,
    "cvt.s32.s8 %d, %a;": lambda a, b, c: (a & 255) - 256 * (a >> 7 & 1),
    "sad.u32 %d, %a, %b, %c;": lambda a, b, c: c + abs(a - b),
    "div.s32 %d, %a, 7;": lambda a, b, c: math.trunc(signed(a) / 7),
    "rem.u32 %d, %a, 7;": lambda a, b, c: a % 7,
    "setp.ne.s32 %q, %c, 0; setp.lt.and.s32 %p|%q, %a, %b, %q; "
    "selp.b32 %d, 5, 9, %p; @%q add.s32 %d, %d, 1;": lambda a, b, c: (
        5 if c and signed(a) < signed(b) else 9 + (c != 0)
    ),
    "slct.b32.s32 %d, %a, %b, %c;": lambda a, b, c: a if signed(c) >= 0 else b,
}


@pytest.mark.parametrize("instruction", INTEGER)
def test_integers(instruction):
    inputs = random_words(0, 1, 2)
    lanes = zip(*(x.tolist() for x in inputs), strict=True)
    function = INTEGER[instruction]
    expected = [function(*values) & 0xFFFFFFFF for values in lanes]
    assert evaluate(instruction, inputs, np.uint32).tolist() == expected


def test_wide_integers():
    a, b, c = (x.view(np.int32) for x in random_words(0, 1, 2))
    wide = a.astype(np.int64) * b
    np.testing.assert_array_equal(evaluate("mul.wide.s32 %d, %a, %b;", [a, b], np.int64), wide)
    both = a.view(np.uint32).astype(np.uint64) << np.uint64(32) | b.view(np.uint32)
    found = evaluate("popc.b64 %d, %a;", [both], np.uint32)
    assert found.tolist() == [int(x).bit_count() for x in both]
    found = evaluate("clz.b64 %d, %a;", [both], np.uint32)
    assert found.tolist() == [64 - int(x).bit_length() for x in both]
    found = evaluate("mul.hi.u64 %d, %a, %a;", [both], np.uint64)
    assert found.tolist() == [int(x) * int(x) >> 64 for x in both]
    found = evaluate("dp4a.u32.u32 %d, %a, %b, %c;", [a, b, c], np.uint32)
    dot = (a.view(np.uint8).reshape(-1, 4).astype(np.uint32) * b.view(np.uint8).reshape(-1, 4)).sum(
        1
    )
    assert found.tolist() == [(int(d) + int(x)) & 0xFFFFFFFF for d, x in zip(dot, c, strict=True)]


def test_fns():
    mask = random_words(0)[0]
    base, offset = np.uint32(np.arange(LANES) % 32), np.int32(np.arange(LANES) % 9 - 4)

    def nth(m, b, n):
        if n == 0:
            return b if m >> b & 1 else 0xFFFFFFFF
        places = range(b, 32) if n > 0 else range(b, -1, -1)
        return ([k for k in places if m >> k & 1] + [0xFFFFFFFF] * 32)[abs(n) - 1]

    lanes = zip(mask.tolist(), base.tolist(), offset.tolist(), strict=True)
    found = evaluate("fns.b32 %d, %a, %b, %c;", [mask, base, offset], np.uint32)
    assert found.tolist() == [nth(*values) for values in lanes]


def floats(seed: int, scale: float = 8) -> np.ndarray:
    values = np.random.default_rng(seed).standard_normal(LANES) * scale
    values[:6] = (0, -0.0, np.inf, -np.inf, 0.5, 1.5)
    return values.astype(np.float32)


FLOAT = {
    "add.f32 %d, %a, %b;": lambda a, b, c: a + b,
    "mul.sat.f32 %d, %a, %b;": lambda a, b, c: np.clip(a * b, 0, 1),
    "fma.rn.f32 %d, %a, %b, %c;": lambda a, b, c: a * b + c,
    "div.rn.f32 %d, %a, %b;": lambda a, b, c: a / b,
    "div.approx.f32 %d, %a, %b;": lambda a, b, c: a / b,
    "max.f32 %d, %a, %b;": lambda a, b, c: np.fmax(a, b),
    "min.NaN.f32 %d, %a, %b;": lambda a, b, c: np.minimum(a, b),
    "abs.f32 %d, %a;": lambda a, b, c: np.abs(a),
    "neg.f32 %d, %a;": lambda a, b, c: -a,
    "copysign.f32 %d, %a, %b;": lambda a, b, c: np.copysign(b, a),
    "ex2.approx.ftz.f32 %d, %a;": lambda a, b, c: np.exp2(a),
    "lg2.approx.f32 %d, %a;": lambda a, b, c: np.log2(a),
    "rcp.rn.f32 %d, %a;": lambda a, b, c: 1 / a,
    "rsqrt.approx.f32 %d, %a;": lambda a, b, c: 1 / np.sqrt(a),
    "sqrt.rn.f32 %d, %a;": lambda a, b, c: np.sqrt(a),
    "tanh.approx.f32 %d, %a;": lambda a, b, c: np.tanh(a),
    "selp.f32 %d, 0f3F800000, 0f40000000, %p;": lambda a, b, c: np.where(a < b, 1, 2),
    "cvt.rni.f32.f32 %d, %a;": lambda a, b, c: np.rint(a),
}


@pytest.mark.parametrize("instruction", FLOAT)
def test_floats(instruction):
    a, b, c = floats(0), floats(1)[::-1].copy(), floats(2)
    with np.errstate(all="ignore"):
        wide = FLOAT[instruction](*(x.astype(np.float64) for x in (a, b, c)))
        expected = wide.astype(np.float32)
    text = "setp.lt.f32 %p, %a, %b; " + instruction
    np.testing.assert_array_equal(evaluate(text, [a, b, c], np.float32), expected)


@pytest.mark.parametrize("way", ["rz", "rm", "rp"])
def test_directed_rounding(way):
    a, b, c = floats(0)[6:], floats(1)[6:], floats(2)[6:] * 1e9  # no infinities
    a, b, c = (np.pad(x, (0, 6), constant_values=1) for x in (a, b, c))
    for text, function in (
        (f"add.{way}.f32 %d, %a, %b;", lambda a, b, c: a + b),
        (f"fma.{way}.f32 %d, %a, %b, %c;", lambda a, b, c: a * b + c),
    ):
        found = evaluate(text, [a, b, c], np.float32)
        for got, *lane in zip(found, a, b, c, strict=True):
            exact = function(*(Fraction(float(x)) for x in lane))
            near, limit = Fraction(float(got)), {"rm": -np.inf, "rp": np.inf, "rz": 0}[way]
            inside = np.nextafter(got, np.float32(np.inf if near < exact else -np.inf))
            if near != exact:
                assert (near < exact) == (limit < exact), "the wrong side"
                assert (Fraction(float(inside)) > exact) == (near < exact), "not the nearest there"
    with pytest.raises(Unsupported, match=r"add\.rz\.f16x2"):
        evaluate("add.rz.f16x2 %d, %a, %b;", [a, b], np.float32)


def test_float_to_integer():
    a = floats(0, 1e9)
    a[:8] = (0.5, 1.5, -2.5, 2.7, -2.7, 3e9, -3e9, np.nan)
    for rounding, function in (("rni", np.rint), ("rzi", np.trunc), ("rmi", np.floor)):
        found = evaluate(f"cvt.{rounding}.s32.f32 %d, %a;", [a], np.int32)
        whole = np.nan_to_num(function(a.astype(np.float64)), nan=0)
        np.testing.assert_array_equal(found, np.clip(whole, -(2**31), 2**31 - 1).astype(np.int32))
    found = evaluate("cvt.rni.s8.f32 %x, %a; cvt.s32.s8 %d, %x;", [a], np.int32)
    np.testing.assert_array_equal(found, np.clip(np.nan_to_num(np.rint(a)), -128, 127))
    found = evaluate("cvt.rn.f32.s32 %d, %a;", [random_words(0)[0]], np.float32)
    np.testing.assert_array_equal(found, random_words(0)[0].view(np.int32).astype(np.float32))


def test_tf32_and_halves():
    a, b = floats(0, 1e-3), floats(1, 1e3)
    away = np.where(
        np.isfinite(a), (a.view(np.uint32) + np.uint32(0x1000)) & 0xFFFFE000, a.view(np.uint32)
    )
    found = evaluate("cvt.rna.tf32.f32 %d, %a;", [a], np.uint32)
    np.testing.assert_array_equal(found, away)
    found = evaluate("cvt.rn.f16x2.f32 %d, %a, %b;", [a, b], np.uint32)
    pair = np.stack([b.astype(np.float16), a.astype(np.float16)], -1)
    np.testing.assert_array_equal(found, pair.view(np.uint32).ravel())
    found = evaluate("cvt.rn.bf16x2.f32 %d, %a, %b;", [a, b], np.uint32)
    pair = np.stack([f32_to_bf16(b), f32_to_bf16(a)], -1)
    np.testing.assert_array_equal(found, pair.view(np.uint32).ravel())
    found = evaluate("cvt.rn.satfinite.bf16x2.f32 %d, %a, %b;", [a, b], np.uint32)
    top = bf16_to_f32(np.array([0x7F7F], np.uint16))[0]
    pair = np.stack([f32_to_bf16(np.clip(x, -top, top)) for x in (b, a)], -1)
    np.testing.assert_array_equal(found, pair.view(np.uint32).ravel())


def halves(words: np.ndarray, type_: str) -> np.ndarray:
    if type_ == "f16x2":
        return words.view(np.float16).astype(np.float64)
    return bf16_to_f32(words.view(np.uint16)).astype(np.float64)


PACKED = {
    "fma.rn.TYPE %d, %a, %b, %c;": lambda a, b, c: a * b + c,
    "fma.rn.relu.TYPE %d, %a, %b, %c;": lambda a, b, c: np.maximum(a * b + c, 0),
    "add.TYPE %d, %a, %b;": lambda a, b, c: a + b,
    "mul.TYPE %d, %a, %b;": lambda a, b, c: a * b,
    "max.TYPE %d, %a, %b;": lambda a, b, c: np.fmax(a, b),
    "min.TYPE %d, %a, %b;": lambda a, b, c: np.fmin(a, b),
    "neg.TYPE %d, %a;": lambda a, b, c: -a,
    "set.gt.TYPE.TYPE %d, %a, %b;": lambda a, b, c: (a > b) * 1.0,
}


@pytest.mark.parametrize("type_", ["f16x2", "bf16x2"])
@pytest.mark.parametrize("instruction", PACKED)
def test_packed_halves(instruction, type_):
    def words(seed):
        values = np.random.default_rng(seed).standard_normal(2 * LANES).astype(np.float32)
        bits = (
            values.astype(np.float16).view(np.uint16) if type_ == "f16x2" else f32_to_bf16(values)
        )
        return bits.view(np.uint32)

    inputs = [words(seed) for seed in range(3)]
    found = evaluate(instruction.replace("TYPE", type_), inputs, np.uint32)
    exact = PACKED[instruction](*(halves(x, type_) for x in inputs))
    actual = halves(found, type_)
    unit = 2.0**-11 if type_ == "f16x2" else 2.0**-8  # half a unit in the last place, relative
    assert (np.abs(actual - exact) <= unit * np.abs(exact) + 1e-7).all()
