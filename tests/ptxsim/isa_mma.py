"""Tensor-core instructions: mma.sync and mma.sp.

Fragment layouts follow "PTX ISA", section "Warp Level Matrix Instructions". Notation for an
m16n8kK tile, with g = lane / 4 and t = lane % 4 (e = elements per 32-bit register):
  A: register r holds row g + 8*(r%2), columns e*t + e*4*(r/2) + 0..e-1
  B: register r holds column g,        rows    e*t + e*4*r     + 0..e-1
  C: register r holds row g + 8*(r/2), column  2*t + r%2
"""

from __future__ import annotations

import numpy as np

from .dispatch import op
from .isa_warp import whole_warps
from .syntax import SIZES, Vec
from .values import NP, Unsupported, bf16_to_f32, destination, source


def _unpack(words: np.ndarray, type_: str) -> np.ndarray:
    """[..., registers] 32-bit words -> [..., registers, elements] as float32 or int32."""
    words = np.ascontiguousarray(words)
    if type_ == "f16":
        return words.view(np.float16).reshape(*words.shape, 2).astype(np.float32)
    if type_ == "bf16":
        return bf16_to_f32(words.view(np.uint16)).reshape(*words.shape, 2)
    if type_ == "tf32":
        return (words & np.uint32(0xFFFFE000)).view(np.float32).reshape(*words.shape, 1)
    if type_ in ("s8", "u8"):
        return (
            words.view(np.int8 if type_ == "s8" else np.uint8)
            .reshape(*words.shape, 4)
            .astype(np.int32)
        )
    raise Unsupported(f"mma operand type {type_}")


def _fragment_a(words: np.ndarray, type_: str) -> np.ndarray:
    """[warps, 32, registers] -> [warps, 16, columns]."""
    elements = _unpack(words, type_)
    warps, _, registers, e = elements.shape
    out = np.empty((warps, 16, e * 4 * -(-registers // 2)), elements.dtype)
    lane = np.arange(32)
    for r in range(registers):
        for x in range(e):
            out[:, lane // 4 + 8 * (r % 2), e * (lane % 4) + e * 4 * (r // 2) + x] = elements[
                :, :, r, x
            ]
    return out


def _fragment_b(words: np.ndarray, type_: str) -> np.ndarray:
    """[warps, 32, registers] -> [warps, rows, 8]."""
    elements = _unpack(words, type_)
    warps, _, registers, e = elements.shape
    out = np.empty((warps, e * 4 * registers, 8), elements.dtype)
    lane = np.arange(32)
    for r in range(registers):
        for x in range(e):
            out[:, e * (lane % 4) + e * 4 * r + x, lane // 4] = elements[:, :, r, x]
    return out


def _accumulators(words, type_):
    if type_ in ("f32", "s32"):
        return np.ascontiguousarray(words).view(NP[type_])
    halves = np.ascontiguousarray(words).view(np.float16).astype(np.float32)
    return halves.reshape(*words.shape[:-1], -1)


def sparse_columns(
    indices: np.ndarray, compressed: np.ndarray, group: int = 4, keep: int = 2
) -> np.ndarray:
    """Expand 2:4 (or 1:2) compressed rows. indices, compressed: [..., K/2]; returns [..., K]."""
    full = np.zeros(
        (*compressed.shape[:-1], compressed.shape[-1] * group // keep), compressed.dtype
    )
    column = np.arange(compressed.shape[-1]) // keep * group + indices
    np.put_along_axis(full, column, compressed, -1)
    return full


def _fields(word: np.ndarray, n: int) -> np.ndarray:
    return (word[..., None] >> (2 * np.arange(n, dtype=np.uint32))) & 3


def metadata_indices(meta: np.ndarray, selector: int, columns: int, type_: str) -> np.ndarray:
    """Per-row 2-bit column indices of a compressed A tile, from the metadata registers.

    meta: [warps, 32] words; columns: compressed columns of A. Returns [warps, 16, columns].
    f16/bf16 with 8 compressed columns (k16): lane 4g+selector holds rows g (low half) and g+8 (high).
    f16/bf16 with 16 compressed columns (k32): lanes 4g+2*selector+{0,1}: each as above for its half of k.
    s8/u8 with 32 compressed columns (k64): lanes 4g+{0..3}: row g + 8*(t%2), k half t/2.
    """
    warps = meta.shape[0]
    out = np.empty((warps, 16, columns), np.int64)
    g = np.arange(8)
    if type_ in ("f16", "bf16") and columns in (8, 16):
        for part in range(columns // 8):
            word = meta[:, 4 * g + (selector if columns == 8 else 2 * selector + part)]
            out[:, g, 8 * part : 8 * part + 8] = _fields(word & np.uint32(0xFFFF), 8)
            out[:, g + 8, 8 * part : 8 * part + 8] = _fields(word >> np.uint32(16), 8)
        return out
    if type_ in ("s8", "u8") and columns == 32:
        for t in range(4):
            out[:, g + 8 * (t % 2), 16 * (t // 2) : 16 * (t // 2) + 16] = _fields(
                meta[:, 4 * g + t], 16
            )
        return out
    raise Unsupported(f"sparse metadata for {type_} with {columns} columns")


@op("mma")
def _mma(i, run, here):
    name = i.opcode[1] if i.opcode[1] in ("sp", "sp~ordered_metadata") else None
    shape = next((p for p in i.opcode if p.startswith("m16n8k")), None)
    if shape is None or "row" not in i.opcode:
        raise Unsupported(".".join(i.opcode))
    types = [p for p in i.opcode if p in SIZES]
    d_type, a_type, b_type, c_type = types
    d, a, b, c = (o.items if isinstance(o, Vec) else (o,) for o in i.operands[:4])
    gets_a, gets_b, gets_c = ([source(o, "b32", run) for o in items] for items in (a, b, c))
    puts = [destination(o, "b32", run) for o in d]
    meta = source(i.operands[4], "b32", run) if name else None
    selector = i.operands[5].value if name else 0

    def read(gets, warps):
        return np.stack([g(warps.ravel()).reshape(-1, 32) for g in gets], -1)

    def step(active, group):
        warps = whole_warps(run, active)
        left, right = (
            _fragment_a(read(gets_a, warps), a_type),
            _fragment_b(read(gets_b, warps), b_type),
        )
        if name:
            indices = metadata_indices(
                meta(warps.ravel()).reshape(-1, 32), selector, left.shape[-1], a_type
            )
            if a_type in ("f16", "bf16") and (indices[..., 0::2] >= indices[..., 1::2]).any():
                raise Unsupported(
                    "metadata with indices that do not increase within a group of four"
                )
            left = sparse_columns(indices, left)
        lane = np.arange(32)
        acc = _accumulators(read(gets_c, warps), c_type)  # [warps, 32, 4]
        total = (
            np.matmul(left.astype(np.float64), right.astype(np.float64))
            if a_type not in ("s8", "u8")
            else np.matmul(left.astype(np.int64), right.astype(np.int64))
        )
        out = np.empty(acc.shape, np.float64 if d_type != "s32" else np.int64)
        for r in range(4):
            out[:, :, r] = total[:, lane // 4 + 8 * (r // 2), 2 * (lane % 4) + r % 2] + acc[:, :, r]
        if d_type in ("f32", "s32"):
            words = out.astype(NP[d_type]).view(np.uint32)
        else:
            words = np.ascontiguousarray(out.astype(np.float16)).view(np.uint32)
        for r, put in enumerate(puts):
            put(warps.ravel(), words[:, :, r].ravel())

    return step
