"""``prepare`` and ``linear``: the op that fits a packed weight."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch import Tensor

from evoprune_kernels.formats import BitmaskWeight, BlockWeight, NMWeight, PackedWeight
from evoprune_kernels.ops.bitmask_linear import bitmask_linear
from evoprune_kernels.ops.bitmask_prepare import bitmask_prepare
from evoprune_kernels.ops.block_linear import block_linear
from evoprune_kernels.ops.block_prepare import block_prepare
from evoprune_kernels.ops.nm_linear import nm_linear
from evoprune_kernels.ops.nm_prepare import nm_prepare

#: packed type -> (its prepare, its linear)
_OPS: dict[type[PackedWeight], tuple[Callable[..., Any], Callable[..., Any]]] = {
    NMWeight: (nm_prepare, nm_linear),
    BlockWeight: (block_prepare, block_linear),
    BitmaskWeight: (bitmask_prepare, bitmask_linear),
}


def _find(packed: PackedWeight) -> tuple[Callable[..., Any], Callable[..., Any]]:
    if type(packed) not in _OPS:
        names = ", ".join(sorted(kind.__name__ for kind in _OPS))
        raise TypeError(f"expected a packed weight ({names}), got {type(packed).__name__}")
    return _OPS[type(packed)]


def prepare(packed: PackedWeight, *, impl: str | None = None) -> tuple[Tensor, ...]:
    """The tensors of a packed weight in the layout ``cpu``, as its linear op takes them.

    Args:
        packed: any packed weight.
        impl: insist on an implementation.

    Raises:
        TypeError: if ``packed`` is no packed weight.

    Example:
        >>> import torch
        >>> from evoprune_kernels import formats, ops
        >>> [tuple(t.shape) for t in ops.prepare(formats.pack(torch.eye(4), "2:4"))]
        [(1, 16, 16), (1, 1, 16)]
    """
    return _find(packed)[0](packed, impl=impl)


def linear(
    x: Tensor,
    packed: PackedWeight,
    bias: Tensor | None = None,
    activation: str = "none",
    *,
    impl: str | None = None,
) -> Tensor:
    """``act(x W^T + b)`` with any packed weight; arguments as those of ``nm_linear``.

    Example:
        >>> import torch
        >>> from evoprune_kernels import formats, ops
        >>> ops.linear(torch.ones(1, 4), formats.pack(torch.eye(4), "2:4"))
        tensor([[1., 1., 1., 1.]])
    """
    return _find(packed)[1](x, packed, bias, activation, impl=impl)
