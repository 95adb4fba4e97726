"""Operand lists of PTX instructions: tokens -> `Reg`, `Imm`, `Mem`, ... with scoped names."""

from __future__ import annotations

import re
import struct

from .syntax import Imm, Mem, Not, Pair, PtxSyntaxError, Special, Symbol, Vec

_TOKEN = re.compile(
    r"""
    (?P<string>"[^"]*") | (?P<fhex>0[fF][0-9a-fA-F]{8}\b|0[dD][0-9a-fA-F]{16}\b)
  | (?P<num>-?(?:0[xX][0-9a-fA-F]+|\d+)U?) | (?P<word>[%$@A-Za-z_.][\w$%.:]*) | (?P<punct>[{}()\[\],;=!|<>+\-:@])
""",
    re.X,
)


def number(token: str) -> int:
    token = token.rstrip("U")
    sign = -1 if token.startswith("-") else 1
    body = token.lstrip("-")
    if body.lower().startswith("0x"):
        return sign * int(body, 16)
    return sign * (int(body, 8) if len(body) > 1 and body[0] == "0" else int(body))


class Scopes:
    def __init__(self):
        self.stack: list[dict[str, object]] = [{}]
        self.serial = 0

    def push(self):
        self.stack.append({})

    def pop(self):
        self.stack.pop()

    def declare(self, name: str, make):
        self.serial += 1
        unique = (
            name if len(self.stack) <= 2 and name not in self.stack[-1] else f"{name}#{self.serial}"
        )
        self.stack[-1][name] = made = make(unique)
        return made

    def find(self, name: str):
        for scope in reversed(self.stack):
            if name in scope:
                return scope[name]
        return None


def _float_literal(token: str) -> Imm:
    if token[1] in "fF":
        return Imm(struct.unpack("<f", int(token[2:], 16).to_bytes(4, "little"))[0], "f32")
    return Imm(struct.unpack("<d", int(token[2:], 16).to_bytes(8, "little"))[0], "f64")


class Operands:
    """Recursive-descent reader of one operand list."""

    def __init__(self, text: str, scopes: Scopes):
        self.tokens = []
        pos = 0
        while pos < len(text):
            if text[pos].isspace():
                pos += 1
                continue
            m = _TOKEN.match(text, pos)
            if not m:
                raise PtxSyntaxError(f"cannot read operand at {text[pos:]!r}")
            self.tokens.append((m.lastgroup, m.group()))
            pos = m.end()
        self.pos, self.scopes = 0, scopes

    def peek(self):
        return self.tokens[self.pos] if self.pos < len(self.tokens) else (None, None)

    def take(self):
        token = self.peek()
        self.pos += 1
        return token

    def read_all(self) -> tuple:
        out = []
        while self.pos < len(self.tokens):
            out.append(self.operand())
            if self.peek()[1] == ",":
                self.take()
        return tuple(out)

    def operand(self):
        item = self.single()
        if self.peek()[1] == "|":
            self.take()
            return Pair(item, self.single())
        return item

    def single(self):
        kind, token = self.take()
        if token == "!":
            return Not(self.single())
        if token == "-":
            inner = self.single()
            return Imm(-inner.value, inner.kind)
        if token == "{":
            items = []
            while self.peek()[1] != "}":
                items.append(self.operand())
                if self.peek()[1] == ",":
                    self.take()
            self.take()
            return Vec(tuple(items))
        if token == "[":
            base, offset, extra = self.single(), 0, []
            while self.peek()[1] != "]":
                kind2, token2 = self.take()
                if token2 == ",":
                    extra.append(self.single())
                elif token2 == "+":
                    offset += number(self.take()[1])
                elif kind2 == "num":
                    offset += number(token2)
                elif token2 == "-":
                    offset -= number(self.take()[1])
                else:
                    raise PtxSyntaxError(f"cannot read address near {token2!r}")
            self.take()
            return Mem(base, offset, tuple(extra))
        if token == "(":
            items = []
            while self.peek()[1] != ")":
                items.append(self.operand())
                if self.peek()[1] == ",":
                    self.take()
            self.take()
            return Vec(tuple(items))
        if kind == "fhex":
            return _float_literal(token)
        if kind == "num":
            return Imm(number(token))
        if kind == "word":
            known = self.scopes.find(token)
            if known is not None:
                return known
            if token.startswith("%"):
                return Special(token)
            return Symbol(token)
        raise PtxSyntaxError(f"unexpected token {token!r}")
