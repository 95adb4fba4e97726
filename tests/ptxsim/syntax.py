"""What a parsed PTX program is made of: operands, instructions, variables, kernels and modules."""

from __future__ import annotations

from dataclasses import dataclass, field

SIZES = {
    "pred": 1,
    "b8": 1,
    "u8": 1,
    "s8": 1,
    "b16": 2,
    "u16": 2,
    "s16": 2,
    "f16": 2,
    "bf16": 2,
    "b32": 4,
    "u32": 4,
    "s32": 4,
    "f32": 4,
    "f16x2": 4,
    "bf16x2": 4,
    "tf32": 4,
    "b64": 8,
    "u64": 8,
    "s64": 8,
    "f64": 8,
    "b128": 16,
}


@dataclass(frozen=True)
class Reg:
    """A virtual register: its unique slot name and its size in bytes (predicates: 1)."""

    name: str
    size: int


@dataclass(frozen=True)
class Imm:
    """A literal: `bits` of the integer, or of a 32/64-bit float when `kind` is 'f32'/'f64'."""

    value: int | float
    kind: str = "int"


@dataclass(frozen=True)
class Special:
    """A read-only register such as %tid.x."""

    name: str


@dataclass(frozen=True)
class Symbol:
    """A variable, parameter or label used by name."""

    name: str


@dataclass(frozen=True)
class Mem:
    """`[base + offset]`; base is a Reg, a Symbol, or an Imm."""

    base: object
    offset: int = 0
    extra: tuple = ()


@dataclass(frozen=True)
class Vec:
    items: tuple


@dataclass(frozen=True)
class Not:
    item: object


@dataclass(frozen=True)
class Pair:
    """`%p|%q`: the two destinations of setp and shfl."""

    first: object
    second: object


@dataclass
class Instr:
    opcode: tuple[str, ...]
    operands: tuple
    guard: Reg | None
    negated: bool
    line: int
    text: str


@dataclass
class Variable:
    """A `.shared`, `.local`, `.const` or `.global` array; `size` 0 means dynamic shared memory."""

    name: str
    space: str
    align: int
    size: int
    data: bytes | None = None


@dataclass
class Param:
    name: str
    size: int
    align: int
    offset: int = 0


@dataclass
class Kernel:
    name: str
    params: list[Param]
    variables: dict[str, Variable] = field(default_factory=dict)
    registers: dict[str, Reg] = field(default_factory=dict)
    code: list[Instr] = field(default_factory=list)
    labels: dict[str, int] = field(default_factory=dict)
    directives: dict[str, tuple[int, ...]] = field(default_factory=dict)


@dataclass
class Module:
    target: str
    version: str
    kernels: dict[str, Kernel]
    variables: dict[str, Variable]


class PtxSyntaxError(ValueError):
    pass
