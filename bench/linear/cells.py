"""What ``python -m bench linear`` measures: shapes, tokens, patterns, and how many layers a cold stack has.

A pattern is written ``PATTERN[@PERCENT][+STORED]``: ``2:4``, ``block:16x16@75``, ``2:4+int8``.
"""

from __future__ import annotations

import argparse
from dataclasses import dataclass

from torch import Tensor

from evoprune_kernels import formats, ops

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
    *(f"{p}+w8a8" for p in ("2:4", "2:4v16", "block:16x16@75", "block:16x16@90")),
)
COLD_MB, GRID_COLD_MB = 256, 1100
FEW_TOKENS = 16


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
