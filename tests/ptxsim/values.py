"""Values of lanes: PTX types as numpy types, and how operands are read and written."""

from __future__ import annotations

import numpy as np

from .syntax import SIZES, Imm, Mem, Not, Reg, Special, Symbol

NP = {
    "b8": np.uint8,
    "u8": np.uint8,
    "s8": np.int8,
    "b16": np.uint16,
    "u16": np.uint16,
    "s16": np.int16,
    "f16": np.float16,
    "b32": np.uint32,
    "u32": np.uint32,
    "s32": np.int32,
    "f32": np.float32,
    "b64": np.uint64,
    "u64": np.uint64,
    "s64": np.int64,
    "f64": np.float64,
    "tf32": np.float32,
    "f16x2": np.uint32,
    "bf16x2": np.uint32,
}
UINT = {1: np.uint8, 2: np.uint16, 4: np.uint32, 8: np.uint64}


class Unsupported(NotImplementedError):
    """An instruction, state space or modifier that the simulator does not know."""


def bf16_to_f32(bits: np.ndarray) -> np.ndarray:
    return (np.asarray(bits, np.uint16).astype(np.uint32) << np.uint32(16)).view(np.float32)


def f32_to_bf16(values: np.ndarray) -> np.ndarray:
    """Round to nearest even; NaN stays NaN."""
    bits = np.ascontiguousarray(values, np.float32).view(np.uint32).astype(np.uint64)
    rounded = ((bits + 0x7FFF + ((bits >> 16) & 1)) >> 16).astype(np.uint16)
    return np.where(np.isnan(values), np.uint16(0x7FFF), rounded)


def type_of(opcode: tuple[str, ...], index: int = -1) -> str:
    types = [part for part in opcode if part in SIZES]
    if not types:
        raise Unsupported(".".join(opcode))
    return types[index]


def reader(array: np.ndarray, run):
    """A function lanes -> values of `array`: the array itself when all lanes of the grid run.

    So a step has to compute all it writes before its first write.
    """
    every = run.every
    return lambda lanes: array if lanes is every else array[lanes]


def _immediate(operand: Imm, type_: str):
    size = SIZES[type_]
    if type_ == "pred":
        return bool(operand.value)
    if operand.kind != "int":  # 0f... and 0d... give the bits of a float, whatever the type
        exact = {"f32": np.float32, "f64": np.float64}[operand.kind]
        return np.array([operand.value], exact).view(UINT[size]).view(NP[type_])[0]
    if type_ in ("f32", "f64", "f16"):
        return NP[type_](operand.value)
    if type_ == "bf16":
        return bf16_to_f32(np.array([operand.value & 0xFFFF], np.uint16))[0]
    return np.array([operand.value & ((1 << 8 * size) - 1)], UINT[size]).view(NP[type_])[0]


def _named(name: str, run) -> np.ndarray:
    """The values of a special register, or of a variable's name (its address)."""
    if name in run.special:
        return run.special[name]
    if name == "WARP_SZ":
        return np.full(run.lanes, 32, np.uint32)
    if name in run.symbols:
        return np.full(run.lanes, run.symbols[name][1], np.uint64)
    raise Unsupported(f"name {name}")


def source(operand, type_: str, run):
    """A function lanes -> values of `type_` (bf16 as float32; packed halves as uint32)."""
    size = SIZES[type_]
    if isinstance(operand, Not):
        inner = source(operand.item, type_, run)
        return lambda lanes: ~inner(lanes)
    if isinstance(operand, Imm):
        constant = np.full(run.lanes, _immediate(operand, type_))
        return lambda lanes: constant[: lanes.size]
    if isinstance(operand, (Special, Symbol)) or (
        isinstance(operand, Reg) and operand.name in run.special
    ):
        return reader(_named(operand.name, run).astype(UINT[size]).view(NP[type_]), run)
    if isinstance(operand, Reg):
        array = run.registers[operand.name]
        if type_ == "pred":
            return reader(array, run)
        if type_ == "bf16":
            get = reader(array, run)
            return lambda lanes: bf16_to_f32(get(lanes))
        if operand.size == size:
            return reader(array.view(NP[type_]), run)
        get = reader(array, run)
        return lambda lanes: get(lanes).astype(UINT[size]).view(NP[type_])
    raise Unsupported(f"operand {operand}")


def destination(operand, type_: str, run):
    """A function (lanes, values of `type_`) that writes the register."""
    if isinstance(operand, (Symbol, Special)) and operand.name in ("_", "%_"):
        return lambda lanes, values: None
    if not isinstance(operand, Reg):
        raise Unsupported(f"destination {operand}")
    array, every = run.registers[operand.name], run.every
    everywhere = slice(None)

    def put(lanes, values):
        array[everywhere if lanes is every else lanes] = values

    if type_ == "pred":
        return put
    if type_ == "bf16":
        return lambda lanes, values: put(lanes, f32_to_bf16(values))
    dtype, raw, size = np.dtype(NP[type_]), array.dtype, SIZES[type_]
    if operand.size == size:
        return lambda lanes, values: put(lanes, np.asarray(values, dtype).view(raw))
    if type_[0] == "s":
        wide = {1: np.int8, 2: np.int16, 4: np.int32, 8: np.int64}[operand.size]
        return lambda lanes, values: put(lanes, np.asarray(values, dtype).astype(wide).view(raw))
    return lambda lanes, values: put(lanes, np.asarray(values, dtype).view(UINT[size]).astype(raw))


def address_of(mem: Mem, run):
    """A function lanes -> int64 addresses of `[base + offset]`."""
    if isinstance(mem.base, Reg):
        get = reader(run.registers[mem.base.name], run)
        return lambda lanes: get(lanes).astype(np.int64) + mem.offset
    if isinstance(mem.base, Symbol):
        start = run.symbols[mem.base.name][1]
    elif isinstance(mem.base, Imm):
        start = mem.base.value
    else:
        raise Unsupported(f"address {mem}")
    return lambda lanes: np.full(lanes.size, start + mem.offset, np.int64)
