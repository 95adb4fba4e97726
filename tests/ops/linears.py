"""What the tests of the three sparse linear ops share: a small problem of each format, the dense oracle, one call."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from evoprune_kernels import ops
from evoprune_kernels.ops import Op
from evoprune_kernels.ops.bitmask_linear.cases import CASES as BITMASK_CASES
from evoprune_kernels.ops.block_linear.cases import CASES as BLOCK_CASES
from evoprune_kernels.ops.nm_linear.cases import CASES as NM_CASES

LAYOUTS = ("canonical", "cpu")
ROWS, COLUMNS = 33, 61
ACTIVATE = {
    "none": lambda z: z,
    "relu": F.relu,
    "gelu": F.gelu,
    "gelu_tanh": lambda z: F.gelu(z, approximate="tanh"),
    "silu": F.silu,
}


def oracle(x, weight, bias, activation, dtype):
    """The dense product; ``weight`` is the masked dense weight."""
    bias = None if bias is None else bias.to(dtype)
    return ACTIVATE[activation](F.linear(x.to(dtype), weight.to(dtype), bias))


@dataclass(frozen=True)
class Format:
    """One sparse linear op: ``choose`` makes a mask of a shape, ``pack`` packs a dense weight by it."""

    name: str
    linear: Callable[..., Tensor]
    op: Op
    cases: list[Any]
    choose: Callable[[int, int], Tensor]
    pack: Callable[[Tensor, Tensor], Any]

    def small(self, tokens=5, rows=ROWS, columns=COLUMNS):
        """x, packed weight and bias of a problem with a tail in every dimension."""
        packed = self.pack(torch.randn(rows, columns), self.choose(rows, columns))
        return torch.randn(tokens, columns), packed, torch.randn(rows)

    def tensors(self, packed, layout, impl=None):
        """The packed tensors as the op of that layout takes them."""
        prepared = layout == "cpu"
        return ops.prepare(packed, impl=impl) if prepared else [*packed.tensors().values()]

    def call(self, x, packed, bias=None, activation="none", layout="cpu", impl=None):
        """The op itself, below the public function."""
        rest = (*packed.shape, *packed.pattern.arguments(), activation, layout)
        return self.op(x, *self.tensors(packed, layout, impl), bias, *rest, impl=impl)


NM = Format(
    "nm",
    ops.nm_linear,
    ops.nm_linear.OP,
    NM_CASES,
    lambda rows, columns: ops.select_nm(torch.rand(rows, columns), 2, 4),
    lambda weight, mask: ops.nm_pack(weight, 2, 4, mask),
)
BLOCK = Format(
    "block",
    ops.block_linear,
    ops.block_linear.OP,
    BLOCK_CASES,
    lambda rows, columns: ops.select_block(torch.rand(rows, columns), 16, 16, 0.5),
    lambda weight, mask: ops.block_pack(weight, 16, 16, mask),
)
BITMASK = Format(
    "bitmask",
    ops.bitmask_linear,
    ops.bitmask_linear.OP,
    BITMASK_CASES,
    lambda rows, columns: torch.rand(rows, columns) < 0.4,
    lambda weight, mask: ops.bitmask_pack(weight, mask),
)
FORMATS = (NM, BLOCK, BITMASK)


def poke(index, at, value):
    """Changes one entry of one tensor."""

    def change(tensors):
        tensors[index] = tensors[index].clone()
        tensors[index].view(-1)[at] = value

    return change


def cut(index):
    """Drops the last entry of one tensor."""

    def change(tensors):
        tensors[index] = tensors[index][:-1]

    return change
