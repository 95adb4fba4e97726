"""Our contenders: how a weight is stored, and the op that multiplies by it.

``+NAME`` behind a pattern chooses one of ``STORED``. Another kernel of ours, of other arithmetic (int8 by int8), is one
more entry: its ``pack`` makes the packed weight, its ``kernel`` calls the op, its ``error`` states what it may lose.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from bench.peers import Stack
from bench.peers.adapter import each
from evoprune_kernels import formats, ops
from evoprune_kernels.formats import PackedWeight, Pattern


def linear_op(packed: PackedWeight, tensors: tuple[Tensor, ...]) -> Callable[[Tensor], Tensor]:
    """``x -> x W^T`` by the linear op of ``packed`` with its prepared ``tensors``."""
    op = ops.OPS[f"{packed.FORMAT}_linear"].overload
    numbers = (*packed.shape, *packed.pattern.arguments(), "none", "cpu", packed.scale)
    return lambda x: op(x, *tensors, None, *numbers)


@dataclass(frozen=True)
class Stored:
    """A way to keep our weight and to multiply by it.

    Args:
        precision: of its rivals (``bench.peers.adapter.PRECISIONS``).
        pack: packed float32 weight -> the packed weight that is measured.
        kernel: (packed, prepared tensors) -> ``x -> x W^T``, x float32.
        error: largest allowed error against the stored weight, in units of the largest true value; None: the
            tolerance law.
    """

    precision: str
    pack: Callable[[PackedWeight], PackedWeight]
    kernel: Callable[[PackedWeight, tuple[Tensor, ...]], Callable[[Tensor], Tensor]] = linear_op
    error: float | None = None


STORED = {
    "": Stored("fp32", lambda packed: packed),
    "bf16": Stored("bf16", lambda packed: packed.to(torch.bfloat16)),
    "int8": Stored("int8", lambda packed: packed.quantize()),
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
    tensors = ops.prepare(packed)
    calls = [stored.kernel(packed, tuple(t.clone() for t in tensors)) for _ in range(layers)]
    stack = each([lambda f=call: f(x) for call in calls])
    scale = 0 if packed.scale is None else packed.scale.nbytes
    stack.nbytes = sum(t.nbytes for t in tensors) + scale
    return stack, packed.unpack().float()
