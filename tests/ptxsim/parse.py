"""PTX text -> `Module` of `Kernel`s: registers, variables and a flat list of instructions.

Source of the grammar: "Parallel Thread Execution ISA", chapters 4 (syntax), 5 (state
spaces) and 7 (ABI). Only what nvcc and Triton emit for one translation unit is read:
no `.func` is ever called, and texture/surface objects are refused when executed.
"""

from __future__ import annotations

import re

from .operands import Operands, Scopes, number
from .syntax import SIZES, Instr, Kernel, Module, Param, PtxSyntaxError, Reg, Variable


def _strip_comments(text: str) -> str:
    text = re.sub(r"/\*.*?\*/", lambda m: "\n" * m.group().count("\n"), text, flags=re.S)
    return re.sub(r"//[^\n]*", "", text)


class _Statements:
    """Splits a kernel body into statements, keeping scopes and line numbers."""

    def __init__(self, text: str, first_line: int):
        self.items: list[tuple[str, str, int]] = []
        line, start, start_line = first_line, 0, first_line
        braces_in_operand = 0
        for i, ch in enumerate(text):
            piece = text[start:i]
            if ch == "\n":
                line += 1
                if not piece.strip() or piece.strip().split()[0] in (".loc", ".file"):
                    start, start_line = i + 1, line
            elif ch == "{":
                if piece.strip():
                    braces_in_operand += 1
                else:
                    self.items.append(("open", "", line))
                    start, start_line = i + 1, line
            elif ch == "}":
                if braces_in_operand:
                    braces_in_operand -= 1
                else:
                    self.items.append(("close", "", line))
                    start, start_line = i + 1, line
            elif ch == ";":
                if piece.strip():
                    self.items.append(("stmt", piece.strip(), start_line))
                start, start_line = i + 1, line
            elif ch == ":" and re.fullmatch(r"\s*[\w$%.]+", piece) and text[i + 1 : i + 2] != ":":
                self.items.append(("label", piece.strip(), line))
                start, start_line = i + 1, line


_VAR = re.compile(
    r"(?:\.visible\s+|\.weak\s+|\.extern\s+)*\.(shared|local|const|global)\s+(?:\.align\s+(\d+)\s+)?"
    r"(?:\.v[24]\s+)?\.(\w+)\s+([\w$.%]+)((?:\[\d*\])*)(?:\s*=\s*(.*))?$",
    re.S,
)


def _initial(text: str, size: int) -> bytes:
    """The bytes of one initial value; addresses of other variables are not supported."""
    if re.fullmatch(r"0[fFdD][0-9a-fA-F]+", text):
        return int(text[2:], 16).to_bytes(size, "little")
    try:
        return (number(text) & ((1 << 8 * size) - 1)).to_bytes(size, "little")
    except ValueError:
        raise PtxSyntaxError(f"cannot read the initial value {text!r}") from None


def _variable(text: str) -> Variable | None:
    m = _VAR.match(text)
    if not m:
        return None
    space, align, type_, name, dims, init = m.groups()
    count = 1
    for dim in re.findall(r"\[(\d*)\]", dims):
        count *= int(dim) if dim else 0
    size = SIZES[type_]
    data = None
    if init:
        values = (
            _initial(v.strip(), size) for v in init.replace("{", "").replace("}", "").split(",")
        )
        data = b"".join(values)
    return Variable(name, space, int(align or size), size * count, data)


_PARAM = re.compile(
    r"\.param\s+(?:\.align\s+(\d+)\s+)?\.(\w+)\s*((?:\.\w+\s+(?:\d+\s+)?)*)([\w$.]+)(?:\[(\d+)\])?"
)


def _params(text: str) -> list[Param]:
    out, offset = [], 0
    for part in text.split(","):
        m = _PARAM.search(part)
        if not m:
            if part.strip():
                raise PtxSyntaxError(f"cannot read parameter {part.strip()!r}")
            continue
        align, type_, _, name, count = m.groups()
        size = SIZES[type_] * int(count or 1)
        align = int(align or SIZES[type_])
        offset = -(-offset // align) * align
        out.append(Param(name, size, align, offset))
        offset += size
    return out


def _body(kernel: Kernel, text: str, first_line: int) -> None:
    scopes = Scopes()
    scopes.push()
    for kind, statement, line in _Statements(text, first_line).items:
        if kind == "open":
            scopes.push()
        elif kind == "close":
            scopes.pop()
        elif kind == "label":
            kernel.labels[statement] = len(kernel.code)
        elif statement.startswith(".reg"):
            m = re.match(r"\.reg\s*(?:\.v[24]\s*)?\.(\w+)\s+(.*)", statement, re.S)
            size = SIZES[m.group(1)]
            for name in m.group(2).split(","):
                name = name.strip()
                ranged = re.fullmatch(r"(.+?)<(\d+)>", name)
                names = (
                    [f"{ranged.group(1)}{i}" for i in range(int(ranged.group(2)))]
                    if ranged
                    else [name]
                )
                for each in names:
                    reg = scopes.declare(each, lambda unique, size=size: Reg(unique, size))
                    kernel.registers[reg.name] = reg
        elif statement.startswith((".shared", ".local", ".extern", ".const")):
            var = _variable(statement)
            if var is None:
                raise PtxSyntaxError(f"line {line}: cannot read {statement!r}")
            kernel.variables[var.name] = var
        elif statement.startswith(
            (".pragma", ".loc", ".branchtargets", ".calltargets", ".callprototype", ".param")
        ):
            continue
        else:
            kernel.code.append(_instruction(statement, scopes, line))


_GUARD = re.compile(r"@(!?)\s*([%\w$.]+)\s+")


def _instruction(text: str, scopes: Scopes, line: int) -> Instr:
    guard, negated, rest = None, False, text
    m = _GUARD.match(text)
    if m:
        negated, guard, rest = bool(m.group(1)), scopes.find(m.group(2)), text[m.end() :]
        if guard is None:
            raise PtxSyntaxError(f"line {line}: unknown predicate in {text!r}")
    parts = rest.split(None, 1)
    opcode = tuple(parts[0].replace("::", "~").split("."))
    operands = Operands(parts[1], scopes).read_all() if len(parts) > 1 else ()
    return Instr(opcode, operands, guard, negated, line, " ".join(text.split()))


_ENTRY = re.compile(
    r"(?:\.visible\s+|\.weak\s+)*\.entry\s+([\w$]+)\s*(?:\(([^)]*)\))?([^{;]*)\{", re.S
)


def _matching_brace(text: str, start: int) -> int:
    depth = 0
    for i in range(start, len(text)):
        if text[i] == "{":
            depth += 1
        elif text[i] == "}":
            depth -= 1
            if depth == 0:
                return i
    raise PtxSyntaxError("unbalanced braces")


def parse(text: str) -> Module:
    """Read PTX source. Raises `PtxSyntaxError` on what it cannot read."""
    text = _strip_comments(text)
    target = re.search(r"\.target\s+([\w, ]+)", text)
    version = re.search(r"\.version\s+([\d.]+)", text)
    kernels, holes = {}, []
    for m in _ENTRY.finditer(text):
        end = _matching_brace(text, m.end() - 1)
        kernel = Kernel(m.group(1), _params(m.group(2) or ""))
        for name, values in re.findall(
            r"\.(reqntid|maxntid|minnctapersm)\s+([\d,\s]+)", m.group(3)
        ):
            kernel.directives[name] = tuple(int(v) for v in values.split(",") if v.strip())
        _body(kernel, text[m.end() : end], text.count("\n", 0, m.end()) + 1)
        kernels[kernel.name] = kernel
        holes.append((m.start(), end + 1))
    outside = text
    for start, end in reversed(holes):
        outside = outside[:start] + outside[end:]
    outside = re.sub(r"\.section[^{]*\{.*?\}", "", outside, flags=re.S)
    variables = {}
    for statement in outside.split(";"):
        at = re.search(
            r"(?:\.visible|\.weak|\.extern|\.global|\.shared|\.const)\b.*", statement, re.S
        )
        var = _variable(" ".join(at.group().split())) if at else None
        if var:
            variables[var.name] = var
    return Module(
        target.group(1).strip() if target else "",
        version.group(1) if version else "",
        kernels,
        variables,
    )
