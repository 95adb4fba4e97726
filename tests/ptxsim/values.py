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


def source(operand, type_: str, run):
    """A function lanes -> values of `type_` (bf16 as float32; packed halves as uint32)."""
    size = SIZES[type_]
    if isinstance(operand, Not):
        inner = source(operand.item, type_, run)
        return lambda lanes: ~inner(lanes)
    if isinstance(operand, Imm):
        if type_ == "pred":
            return lambda lanes: np.full(lanes.size, bool(operand.value))
        if operand.kind != "int":  # 0f... and 0d... give the bits of a float, whatever the type
            exact = {"f32": np.float32, "f64": np.float64}[operand.kind]
            value = np.array([operand.value], exact).view(UINT[size]).view(NP[type_])[0]
        elif type_ in ("f32", "f64", "f16"):
            value = NP[type_](operand.value)
        elif type_ == "bf16":
            value = bf16_to_f32(np.array([operand.value & 0xFFFF], np.uint16))[0]
        else:
            value = np.array([operand.value & ((1 << 8 * size) - 1)], UINT[size]).view(NP[type_])[0]
        return lambda lanes: np.full(lanes.size, value)
    if isinstance(operand, (Special, Symbol)) or (
        isinstance(operand, Reg) and operand.name in run.special
    ):
        name = operand.name
        if name in run.special:
            array = run.special[name]
        elif name == "WARP_SZ":
            array = np.full(run.lanes, 32, np.uint32)
        elif name in run.symbols:
            array = np.full(run.lanes, run.symbols[name][1], np.uint64)
        else:
            raise Unsupported(f"name {name}")
        return lambda lanes: array[lanes].astype(UINT[size]).view(NP[type_])
    if isinstance(operand, Reg):
        array = run.registers[operand.name]
        if type_ == "pred":
            return lambda lanes: array[lanes]
        if type_ == "bf16":
            return lambda lanes: bf16_to_f32(array[lanes])
        if operand.size == size:
            return lambda lanes: array[lanes].view(NP[type_])
        return lambda lanes: array[lanes].astype(UINT[size]).view(NP[type_])
    raise Unsupported(f"operand {operand}")


def destination(operand, type_: str, run):
    """A function (lanes, values of `type_`) that writes the register."""
    if isinstance(operand, (Symbol, Special)) and operand.name in ("_", "%_"):
        return lambda lanes, values: None
    if not isinstance(operand, Reg):
        raise Unsupported(f"destination {operand}")
    array = run.registers[operand.name]
    if type_ == "pred":

        def put_pred(lanes, values):
            array[lanes] = values

        return put_pred
    if type_ == "bf16":

        def put_bf16(lanes, values):
            array[lanes] = f32_to_bf16(values)

        return put_bf16
    dtype = NP[type_]
    signed = type_[0] == "s"
    wide = {1: np.int8, 2: np.int16, 4: np.int32, 8: np.int64}[operand.size]

    def put(lanes, values):
        values = np.asarray(values, dtype)
        if operand.size == values.dtype.itemsize:
            array[lanes] = values.view(array.dtype)
        elif signed:
            array[lanes] = values.astype(wide).view(array.dtype)
        else:
            array[lanes] = values.view(UINT[values.dtype.itemsize]).astype(array.dtype)

    return put


def address_of(mem: Mem, run):
    """A function lanes -> int64 addresses of `[base + offset]`."""
    if isinstance(mem.base, Reg):
        array = run.registers[mem.base.name]
        return lambda lanes: array[lanes].astype(np.int64) + mem.offset
    if isinstance(mem.base, Symbol):
        _, start = run.symbols[mem.base.name]
        return lambda lanes: np.full(lanes.size, start + mem.offset, np.int64)
    if isinstance(mem.base, Imm):
        return lambda lanes: np.full(lanes.size, mem.base.value + mem.offset, np.int64)
    raise Unsupported(f"address {mem}")
