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
from .isa_warp import ALL, warp_sync, whole_warps
from .syntax import SIZES, Vec
from .values import NP, Unsupported, bf16_to_f32, destination, source

_ELEMENTS = {
    "f16": np.float16,
    "bf16": np.uint16,
    "tf32": np.float32,
    "s8": np.int8,
    "u8": np.uint8,
}


def _unpack(words: np.ndarray, type_: str) -> np.ndarray:
    """[registers, warps, 32] words -> [registers, warps, 8, 4, elements]: lane = 4 g + t."""
    if type_ not in _ELEMENTS:
        raise Unsupported(f"mma operand type {type_}")
    if type_ == "tf32":
        words = words & np.uint32(0xFFFFE000)
    elements = words.view(_ELEMENTS[type_]).reshape(*words.shape[:2], 8, 4, -1)
    return bf16_to_f32(elements) if type_ == "bf16" else elements


def _fragment_a(words: np.ndarray, type_: str) -> np.ndarray:
    """[registers, warps, 32] -> [warps, 16, columns]."""
    elements = _unpack(words, type_)
    registers, warps = elements.shape[:2]
    split = elements.reshape(registers // 2, 2, *elements.shape[1:])  # column half, row half
    return split.transpose(2, 1, 3, 0, 4, 5).reshape(warps, 16, -1).astype(np.float64)


def _fragment_b(words: np.ndarray, type_: str) -> np.ndarray:
    """[registers, warps, 32] -> [warps, rows, 8]."""
    elements = _unpack(words, type_)
    return elements.transpose(1, 0, 3, 4, 2).reshape(elements.shape[1], -1, 8).astype(np.float64)


def _accumulators(words: np.ndarray, type_: str) -> np.ndarray:
    """[registers, warps, 32] -> [warps, 16, 8]."""
    if type_ in ("f32", "s32"):
        values = words.view(NP[type_]).reshape(2, 2, -1, 8, 4)  # row half, column, warp, g, t
        return values.transpose(2, 0, 3, 4, 1).reshape(-1, 16, 8)
    values = words.view(np.float16).reshape(2, -1, 8, 4, 2)
    return values.transpose(1, 0, 2, 3, 4).reshape(-1, 16, 8)


def _results(values: np.ndarray, type_: str) -> np.ndarray:
    """The inverse of `_accumulators`."""
    if type_ in ("f32", "s32"):
        split = values.astype(NP[type_]).reshape(-1, 2, 8, 4, 2).transpose(1, 4, 0, 2, 3)
        return np.ascontiguousarray(split).view(np.uint32).reshape(4, -1)
    split = values.astype(np.float16).reshape(-1, 2, 8, 4, 2).transpose(1, 0, 2, 3, 4)
    return np.ascontiguousarray(split).view(np.uint32).reshape(2, -1)


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


def kept_products(kept: np.ndarray, indices: np.ndarray, right: np.ndarray) -> np.ndarray:
    """The sparse product place by place: what is not kept does not meet an infinity, as 0 * inf would."""
    column = np.arange(kept.shape[-1]) // 2 * 4 + indices
    picked = right[np.arange(len(right))[:, None, None], column]  # [warps, 16, K/2, 8]
    return (kept[..., None] * picked).sum(2)


def _fields(word: np.ndarray, n: int) -> np.ndarray:
    return (word[..., None] >> (2 * np.arange(n, dtype=np.uint32))) & 3


def metadata_indices(meta: np.ndarray, selector: int, columns: int, type_: str) -> np.ndarray:
    """Per-row 2-bit column indices of a compressed A tile, from the metadata registers.

    meta: [warps, 32] words; columns: compressed columns of A. Returns [warps, 16, columns].
    f16/bf16 with 8 compressed columns (k16): lane 4g+selector holds rows g (low half) and g+8 (high).
    f16/bf16 with 16 compressed columns (k32): lanes 4g+2*selector+{0,1}: each as above for its half of k.
    s8/u8 with 32 compressed columns (k64): lanes 4g+{0..3}: row g + 8*(t%2), k half t/2.
    """
    out = np.empty((meta.shape[0], 16, columns), np.int64)
    g = np.arange(8)
    for lane, row, start, shift, count in _metadata_places(selector, columns, type_):
        fields = _fields(meta[:, 4 * g + lane] >> np.uint32(shift), count)
        out[:, row : row + 8, start : start + count] = fields
    return out


def _metadata_places(selector: int, columns: int, type_: str):
    """(lane of a quad, first row, first column, first bit, fields) of each piece of metadata."""
    if type_ in ("f16", "bf16") and columns in (8, 16) and selector * columns < 32:
        for part in range(columns // 8):
            lane = selector if columns == 8 else 2 * selector + part
            yield lane, 0, 8 * part, 0, 8
            yield lane, 8, 8 * part, 16, 8
    elif type_ in ("s8", "u8") and columns == 32 and selector == 0:
        for lane in range(4):
            yield lane, 8 * (lane % 2), 16 * (lane // 2), 0, 16
    else:
        raise Unsupported(
            f"sparse metadata for {type_} with {columns} columns, selector {selector}"
        )


class BadMetadata(ValueError):
    """mma.sp metadata that no hardware defines."""


def check_metadata(meta: np.ndarray, selector: int, columns: int, type_: str) -> None:
    """Both indices of every group of four must increase; the nibble that does not is named.

    `mma.sp::ordered_metadata` demands it; plain `mma.sp` is held to it too, so that a kernel can
    change from one to the other.
    """
    for lane, _, _, shift, count in _metadata_places(selector, columns, type_):
        word = meta[:, lane::4] >> np.uint32(shift)
        fields = _fields(word, count)
        bad = fields[..., 0::2] >= fields[..., 1::2]
        if bad.any():
            warp, quad, group = (int(k[0]) for k in np.nonzero(bad))
            nibble = int(word[warp, quad]) >> 4 * group & 15
            raise BadMetadata(
                f"lane {4 * quad + lane} of warp {warp}: metadata nibble {group + shift // 4} is "
                f"{nibble:04b}; legal are 0100 1000 1001 1100 1101 1110"
            )


@op("mma")
def _mma(i, run, here):
    sparse = i.opcode[1] in ("sp", "sp~ordered_metadata")
    shape = next((p for p in i.opcode if p.startswith("m16n8k")), None)
    types = [p for p in i.opcode if p in SIZES]
    d, a, b, c = (o.items if isinstance(o, Vec) else (o,) for o in i.operands[:4])
    if shape is None or "row" not in i.opcode or len(types) != 4 or (len(a) % 2 and len(a) != 1):
        raise Unsupported(".".join(i.opcode))
    d_type, a_type, b_type, c_type = types
    gets_a, gets_b, gets_c = ([source(o, "b32", run) for o in items] for items in (a, b, c))
    puts = [destination(o, "b32", run) for o in d]
    meta = source(i.operands[4], "b32", run) if sparse else None
    selector = i.operands[5].value if sparse else 0
    k = int(shape.removeprefix("m16n8k"))

    def read(gets, lanes):
        return np.stack([get(lanes) for get in gets]).reshape(len(gets), -1, 32)

    def step(active, group):
        whole_warps(run, active)
        left = _fragment_a(read(gets_a, active), a_type)
        right = _fragment_b(read(gets_b, active), b_type)
        if sparse:
            words = meta(active).reshape(-1, 32)
            check_metadata(words, selector, left.shape[-1], a_type)
            indices = metadata_indices(words, selector, left.shape[-1], a_type)
            kept, left = left, sparse_columns(indices, left)
        if left.shape[-1] != k or right.shape[1] != k:
            raise Unsupported(f"{shape} with {len(a)} and {len(b)} registers of {a_type}")
        # float64 holds every product and every integer sum exactly
        if sparse and not np.isfinite(right).all():
            total = kept_products(kept, indices, right)
        else:
            total = np.matmul(left, right)
        total = total + _accumulators(read(gets_c, active), c_type)
        if d_type == "s32":
            limits = np.iinfo(np.int32)
            total = total.clip(limits.min, limits.max) if "satfinite" in i.opcode else total
            total = total.astype(np.int64)
        for put, words in zip(puts, _results(total, d_type), strict=True):
            put(active, words)

    return warp_sync(step, ALL, run, here)
