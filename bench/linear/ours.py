"""Our contenders: how a weight is stored, and the op that multiplies by it.

``+NAME`` behind a pattern chooses one of ``STORED``: its ``pack`` makes the packed weight, its ``error`` states what it
may lose.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from bench.peers import Stack
from bench.peers.adapter import each
from evoprune_kernels import formats
from evoprune_kernels.formats import PackedWeight, Pattern
from evoprune_kernels.ops.prepare import Bound, bind


def linear_op(bound: Bound, scale: Tensor | None, copy: bool = False) -> Callable[[Tensor], Tensor]:
    """``x -> x W^T`` by the op of a bound weight; ``copy`` gives it tensors of its own in memory."""
    tensors = [t.clone() if copy else t for t in bound.tensors.values()]
    return lambda x: bound.op.overload(x, *tensors, None, *bound.tail, scale)


@dataclass(frozen=True)
class Stored:
    """A way to keep our weight and to multiply by it.

    Args:
        precision: of its rivals (``bench.peers.adapter.PRECISIONS``).
        pack: packed float32 weight -> the packed weight that is measured.
        w8a8: multiply in integers, x rounded as well.
        error: largest allowed error against the stored weight, in units of the largest true value; None: the
            tolerance law.
    """

    precision: str
    pack: Callable[[PackedWeight], PackedWeight]
    w8a8: bool = False
    error: float | None = None


STORED = {
    "": Stored("fp32", lambda packed: packed),
    "bf16": Stored("bf16", lambda packed: packed.to(torch.bfloat16)),
    "int8": Stored("int8", lambda packed: packed.quantize()),
    "w8a8": Stored("int8", lambda packed: packed.quantize(), w8a8=True, error=0.03),
}


def stored_of(text: str) -> Stored:
    """How the weight of a pattern's text is stored.

    Raises:
        ValueError: where what follows the ``+`` is not in ``STORED``.
    """
    _, plus, name = text.partition("+")
    if name not in STORED or (plus and not name):
        known = ", ".join(f"+{key}" for key in STORED if key)
        raise ValueError(f"{text!r}: stored as {name!r}, expected nothing or one of {known}")
    return STORED[name]


def our_stack(
    stored: Stored, pattern: Pattern, mask: Tensor, masked: Tensor, x: Tensor, layers: int
) -> tuple[Stack, Tensor]:
    """Our contender, every layer's tensors in their own memory, and the weight that it stores, dense in float32."""
    packed = stored.pack(formats.pack(masked, pattern, mask=mask))
    bound = bind(packed, "none", w8a8=stored.w8a8)
    calls = [linear_op(bound, packed.scale, copy=True) for _ in range(layers)]
    stack = each([lambda f=call: f(x) for call in calls])
    scale = 0 if packed.scale is None else packed.scale.nbytes
    stack.nbytes = sum(t.nbytes for t in bound.tensors.values()) + scale
    return stack, packed.unpack().float()
