"""``prepare``, ``linear`` and ``bind``: the op that fits a packed weight."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from evoprune_kernels import _select
from evoprune_kernels.formats import (
    NM,
    BitmaskWeight,
    Block,
    BlockWeight,
    NMWeight,
    PackedWeight,
    format_of,
)
from evoprune_kernels.formats.base import Pattern
from evoprune_kernels.ops._op import OPS, Op
from evoprune_kernels.ops.bitmask_linear import bitmask_linear
from evoprune_kernels.ops.bitmask_prepare import bitmask_prepare
from evoprune_kernels.ops.block_linear import block_linear
from evoprune_kernels.ops.block_prepare import block_prepare
from evoprune_kernels.ops.nm_linear import nm_linear
from evoprune_kernels.ops.nm_prepare import nm_prepare
from evoprune_kernels.ops.nm_prepare_cuda import nm_prepare_cuda
from evoprune_kernels.ops.nm_w8a8_linear import OP as NM_W8A8
from evoprune_kernels.ops.w8a8_linear import OP as W8A8
from evoprune_kernels.ops.w8a8_prepare import w8a8_picks, w8a8_prepare

#: packed type -> (its prepare, its linear)
_OPS: dict[type[PackedWeight], tuple[Callable[..., Any], Callable[..., Any]]] = {
    NMWeight: (nm_prepare, nm_linear),
    BlockWeight: (block_prepare, block_linear),
    BitmaskWeight: (bitmask_prepare, bitmask_linear),
}

#: the block edges that the CUDA kernels have tiles for
CUDA_BLOCK_EDGES = frozenset({16, 32, 64, 128})


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


@dataclass(frozen=True)
class Bound:
    """A packed weight ready to run: ``run(x, *tensors.values(), bias, *tail, scale)``."""

    op: Op
    tensors: dict[str, Tensor]
    tail: tuple[int | str | list[int], ...]
    impl: str | None = None  # "triton", or what the dispatcher chooses

    @property
    def run(self) -> Callable[..., Tensor]:
        """The overload that is called."""
        return self.op.triton[0] if self.impl == _select.TRITON else self.op.overload


def op_of(
    pattern: Pattern, *, w8a8: bool = False, device: str = "cpu", impl: str | None = None
) -> Op | None:
    """The linear op of a pattern, None if there is none; with ``w8a8`` that of int8 arithmetic on a device type.

    Raises:
        ValueError: where the kernels of the device do not take the pattern; those of ``impl="triton"`` take any.
    """
    if impl != _select.TRITON and device == "cuda" and (reason := cuda_unfit(pattern, w8a8=w8a8)):
        raise ValueError(reason)
    if not w8a8:
        return OPS.get(f"{format_of(pattern).FORMAT}_linear")
    if device == "cuda":
        return NM_W8A8
    w8a8_picks(pattern)
    return W8A8


def cuda_unfit(pattern: Pattern, *, w8a8: bool = False) -> str | None:
    """Why no CUDA kernel multiplies by weights of a pattern, or None.

    Example:
        >>> from evoprune_kernels.formats import parse_pattern
        >>> from evoprune_kernels.ops.prepare import cuda_unfit
        >>> cuda_unfit(parse_pattern("1:4"))
        'the CUDA kernels take 2:4 of the n:m patterns, got 1:4'
    """
    if w8a8 and not isinstance(pattern, NM):
        return f"the CUDA kernels multiply integers for 2:4 only, got {pattern}"
    if isinstance(pattern, NM) and (pattern.n, pattern.m) != (2, 4):
        return f"the CUDA kernels take 2:4 of the n:m patterns, got {pattern}"
    if isinstance(pattern, Block) and not CUDA_BLOCK_EDGES.issuperset(pattern.arguments()):
        edges = ", ".join(map(str, sorted(CUDA_BLOCK_EDGES)))
        return f"the CUDA kernels take blocks of edges {edges}, got {pattern}"
    return None


def uses_triton(pattern: Pattern, *, w8a8: bool = False) -> bool:
    """Whether weights of a pattern on a GPU are multiplied by the Triton kernels: where no CUDA kernel is, or takes it.

    ``EVOPRUNE_IMPL`` insists on either.
    """
    op = OPS.get(f"{format_of(pattern).FORMAT}_linear")
    if w8a8 or op is None or op.triton_reasons():
        return False
    forced = _select.FORCED.get(op.name)
    if forced in (_select.CUDA, _select.TRITON):
        return forced == _select.TRITON
    return bool(op.reasons(_select.CUDA)) or cuda_unfit(pattern) is not None


def bind(
    packed: PackedWeight,
    activation: str,
    *,
    w8a8: bool = False,
    device: str | None = None,
    impl: str | None = None,
) -> Bound:
    """The linear op of a packed weight with its prepared tensors and numbers.

    Args:
        packed: any packed weight; a quantised one with ``w8a8``.
        activation: fused into the op.
        w8a8: quantise x as well and multiply integers.
        device: device type whose kernels will run, ``"cuda"`` or another; default: where ``packed`` is.
        impl: ``"triton"`` for the Triton kernels, which read the tensors as they are saved; see ``uses_triton``.

    Raises:
        TypeError: if ``packed`` is no packed weight.
        ValueError: as ``w8a8_prepare``, or as ``cuda_unfit`` says.

    Example:
        >>> import torch
        >>> from evoprune_kernels import formats
        >>> from evoprune_kernels.ops.prepare import bind
        >>> bind(formats.pack(torch.eye(4), "2:4").quantize(), "none", w8a8=True).tail
        (4, 4, 'row', 'none')
    """
    device = device or packed.values.device.type
    op = op_of(packed.pattern, w8a8=w8a8, device=device, impl=impl)
    assert op is not None
    names: tuple[str, ...] = packed.TENSORS
    tensors: tuple[Tensor, ...]
    tail: tuple[int | str, ...]
    if impl == _select.TRITON:
        tensors = _saved(packed)
        tail = (*packed.pattern.arguments(), activation, "canonical")
    elif device == "cuda":
        tensors, layout = _for_cuda(packed)
        tail = (activation,)
        if not w8a8:
            tail = (*packed.pattern.arguments(), activation, layout)
    elif w8a8:
        names, tensors = ("values", "row_ptr", "columns", "row_sums"), w8a8_prepare(packed)
        tail = (w8a8_picks(packed.pattern), activation)
    else:
        tensors = prepare(packed)
        tail = (*packed.pattern.arguments(), activation, "cpu")
    return Bound(op, dict(zip(names, tensors, strict=True)), (*packed.shape, *tail), impl)


def _for_cuda(packed: PackedWeight) -> tuple[tuple[Tensor, ...], str]:
    """The tensors that the CUDA kernels read, and the name of their layout."""
    if isinstance(packed, NMWeight):
        return nm_prepare_cuda(packed), "cuda"
    return _saved(packed), "canonical"


def _saved(packed: PackedWeight) -> tuple[Tensor, ...]:
    return tuple(getattr(packed, name).detach() for name in packed.TENSORS)
