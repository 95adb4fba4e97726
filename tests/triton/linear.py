"""What the tests of the linear ops in Triton share: the call of an op with a packed weight, and its fp64 truth."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from evoprune_kernels.formats import PackedWeight
from evoprune_kernels.ops._linear import linear_dense
from tests.tolerance import assert_accurate


def arguments(
    x: Tensor, packed: PackedWeight, bias: Tensor | None, activation: str
) -> tuple[Any, ...]:
    """The arguments of the op of a packed weight, in the layout ``canonical``."""
    tensors = tuple(getattr(packed, name) for name in packed.TENSORS)
    tail = (*packed.shape, *packed.pattern.arguments(), activation, "canonical", packed.scale)
    return x, *tensors, bias, *tail


def check(
    run: Any, op: str, x: Tensor, packed: PackedWeight, bias: Tensor | None, activation: str
) -> Tensor:
    """Run an op and hold its result to the tolerance law; returns the result."""
    y = run(op, *arguments(x, packed, bias, activation))
    weight = packed.unpack()
    wide = None if bias is None else bias.double()
    truth = linear_dense(x.double(), weight.double(), wide, activation)
    assert_accurate(y, truth, linear_dense(x, weight, bias, activation))
    return y
