"""What ``python -m bench linear`` measures: shapes, tokens, patterns, and how many layers a cold stack has.

A pattern is written ``PATTERN[@PERCENT][+STORED]``: ``2:4``, ``block:16x16@75``, ``2:4+int8``.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from evoprune_kernels import formats, ops
from evoprune_kernels.formats import PackedWeight

SHAPES = ("3072x768", "768x3072")
TOKENS = (1, 16, 128, 512)
PATTERNS = ("2:4", "2:4v16", "block:16x16@75", "unstructured@90")
GRID_SHAPES = ("768x768", "3072x768", "768x3072", "4096x4096", "11008x4096")
GRID_PATTERNS = (
    "2:4",
    "2:4+bf16",
    "2:4+int8",
    "2:4v16",
    *(f"unstructured@{p}" for p in (80, 90, 95)),
    *(f"block:{e}x{e}@{p}" for e in (16, 32, 64) for p in (50, 75, 90)),
    *(f"block:{b}@{p}" for b in ("16x1", "1x16") for p in (75, 90)),
)
COLD_MB, GRID_COLD_MB = 256, 1100
FEW_TOKENS = 16


@dataclass(frozen=True)
class Stored:
    """A way to keep our weight.

    Args:
        label: in tables.
        precision: of its rivals (``bench.peers.adapter.PRECISIONS``).
        pack: packed float32 weight -> the packed weight that is measured.
        error: largest allowed error in units of the largest true value, or None: the tolerance law.
    """

    label: str
    precision: str
    pack: Callable[[PackedWeight], PackedWeight]
    error: float | None = None


#: ``+NAME`` of a pattern -> how our weight is stored; a kernel of another arithmetic (W8A8) is one more line
STORED = {
    "": Stored("", "fp32", lambda packed: packed),
    "bf16": Stored("bf16 weights", "bf16", lambda packed: packed.to(torch.bfloat16)),
    "int8": Stored("int8 weights", "int8", lambda packed: packed.quantize()),
}


@dataclass(frozen=True)
class Cell:
    """One row of the report: ``weights`` is ``cold`` or ``hot``, ``layers`` how many are walked in a sample."""

    shape: tuple[int, int]
    pattern: str
    tokens: int
    weights: str
    layers: int

    @property
    def key(self) -> tuple[str, str, int, str]:
        """What a record knows it by."""
        return ("x".join(map(str, self.shape)), self.pattern, self.tokens, self.weights)


def key_of(entry: dict[str, object]) -> tuple[object, ...]:
    """``Cell.key`` of a recorded cell."""
    return tuple(entry[name] for name in ("shape", "pattern", "tokens", "weights"))


def stored_of(text: str) -> str:
    """How the weight of a pattern's text is stored: a key of ``STORED``."""
    _, plus, stored = text.partition("+")
    if stored not in STORED or (plus and not stored):
        known = ", ".join(f"+{key}" for key in STORED if key)
        raise ValueError(f"{text!r}: stored as {stored!r}, expected nothing or one of {known}")
    return stored


def split_pattern(text: str) -> tuple[formats.Pattern, float]:
    """``"block:16x16@75"`` -> (pattern, 0.25); n:m has its density in its name; ``+STORED`` is left out."""
    name, _, percent = text.partition("+")[0].partition("@")
    pattern = formats.parse_pattern(name)
    if isinstance(pattern, formats.NM):
        if percent:
            raise ValueError(f"{text!r}: {name} has its own sparsity, expected no '@'")
        return pattern, pattern.n / pattern.m
    if not percent or not 0.0 <= float(percent) < 100.0:
        raise ValueError(f"{text!r}: expected PATTERN@PERCENT with a sparsity from 0 to below 100")
    return pattern, 1.0 - float(percent) / 100.0


def select(weight: Tensor, pattern: formats.Pattern, density: float) -> Tensor:
    """The mask of ``pattern`` by magnitude."""
    scores = weight.abs()
    if isinstance(pattern, formats.NM):
        return ops.select_nm(scores, pattern.n, pattern.m, shared=pattern.shared)
    if isinstance(pattern, formats.Block):
        return ops.select_block(scores, pattern.rows, pattern.columns, density)
    return ops.select_topk(scores, density)


def groups(args: argparse.Namespace) -> list[list[Cell]]:
    """Every cell that the options ask for; those of one group share shape, tokens and dense weights."""
    found = []
    for text in args.shapes:
        out, _, in_ = text.partition("x")
        shape = (int(out), int(in_))
        stack = max(2, -(-args.cold_mb * 2**20 // (4 * shape[0] * shape[1])))
        for tokens in args.tokens:
            few = tokens <= FEW_TOKENS
            kinds = [("cold", stack)] * few + [("hot", 1)] * (not few or args.hot)
            for weights, layers in kinds:
                found.append([Cell(shape, p, tokens, weights, layers) for p in args.patterns])
    return found
