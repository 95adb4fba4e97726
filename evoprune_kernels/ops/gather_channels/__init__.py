"""``evoprune::gather_channels`` and its adjoint ``scatter_channels``: chosen channels alone, and back into zeros."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from evoprune_kernels._check import check, check_dtype
from evoprune_kernels.ops._channels import check_channels, empty_channels
from evoprune_kernels.ops._op import define
from evoprune_kernels.ops.gather_channels.reference import (
    gather_channels_reference,
    scatter_channels_reference,
)


def _fake_gather(x: Tensor, index: Tensor) -> Tensor:
    return empty_channels(x, index.shape[0])


def _fake_scatter(x: Tensor, index: Tensor, channels: int) -> Tensor:
    return empty_channels(x, channels)


def _setup_gather(ctx: Any, inputs: tuple[Tensor, Tensor], output: Tensor) -> None:
    x, index = inputs
    ctx.save_for_backward(index)
    ctx.channels = x.shape[1]


def _backward_gather(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
    (index,) = ctx.saved_tensors
    return SCATTER(grad, index, ctx.channels), None


def _setup_scatter(ctx: Any, inputs: tuple[Tensor, Tensor, int], output: Tensor) -> None:
    ctx.save_for_backward(inputs[1])


def _backward_scatter(ctx: Any, grad: Tensor) -> tuple[Tensor, None, None]:
    (index,) = ctx.saved_tensors
    return OP(grad, index), None, None


OP = define(
    "gather_channels(Tensor x, Tensor index) -> Tensor",
    reference=gather_channels_reference,
    fake=_fake_gather,
    setup_context=_setup_gather,
    backward=_backward_gather,
)
SCATTER = define(
    "scatter_channels(Tensor x, Tensor index, int channels) -> Tensor",
    reference=scatter_channels_reference,
    fake=_fake_scatter,
    setup_context=_setup_scatter,
    backward=_backward_scatter,
)


def gather_channels(x: Tensor, index: Tensor, *, impl: str | None = None) -> Tensor:
    """The channels ``index`` of an activation, in that order.

    ``y[b, k, ...] = x[b, index[k], ...]``

    Args:
        x: [B, C, ...], contiguous or channels_last (anything else is copied first), any dtype.
        index: int64 [K], each in [0, C); any order, repeats allowed.
        impl: insist on an implementation.

    Returns:
        y [B, K, ...] in the dtype and memory format of x.

    Raises:
        ValueError: if x has fewer than 2 dimensions, index not one, an index is negative or too large, or the devices
            differ.
        TypeError: if index is not int64.

    Notes:
        Exact. The gradient is ``scatter_channels``, and so on: differentiable as often as wanted. The values of the
        index are read on the host, which waits for a GPU, and are not checked while compiling: an index outside then
        raises on the CPU and gives zeros in the Triton kernels, which read nothing outside of x. On the CPU it is
        faster than torch's ``index_select`` for channels_last and slower for contiguous x, by what a call costs
        (``python -m bench gates``).

    Example:
        >>> import torch
        >>> from evoprune_kernels import ops
        >>> ops.gather_channels(torch.tensor([[10.0, 11.0, 12.0]]), torch.tensor([2, 0]))
        tensor([[12., 10.]])
    """
    channels = x.shape[1] if x.dim() > 1 else 0
    if not _fits(x, index, channels):
        _check(x, index, channels)
    return OP(x, index, impl=impl)


def scatter_channels(x: Tensor, index: Tensor, channels: int, *, impl: str | None = None) -> Tensor:
    """The adjoint of ``gather_channels``: channel k of x goes to channel ``index[k]``, all others are zero.

    ``y[b, c, ...] = sum over k with index[k] = c of x[b, k, ...]``

    Args:
        x: [B, K, ...], contiguous or channels_last (anything else is copied first), any dtype.
        index: int64 [K], each in [0, channels); any order, repeats allowed.
        channels: C of the result.
        impl: insist on an implementation.

    Returns:
        y [B, C, ...] in the dtype and memory format of x.

    Raises:
        ValueError, TypeError: as ``gather_channels``, and if index has not K entries.

    Notes:
        Exact without repeats; with them channels are added in the order of k, in the dtype of x, on the CPU and in the
        Triton kernels, so that two runs give the same bits. The gradient is ``gather_channels``. On the CPU it is
        faster than torch's ``index_add_`` into zeros for channels_last, and not for contiguous x
        (``python -m bench gates``).

    Example:
        >>> import torch
        >>> from evoprune_kernels import ops
        >>> ops.scatter_channels(torch.tensor([[1.0, 2.0]]), torch.tensor([2, 0]), 4)
        tensor([[2., 0., 1., 0.]])
    """
    if not _fits(x, index, channels):
        _check(x, index, channels)
    if index.shape[0] != x.shape[1]:
        raise ValueError(f"expected index [{x.shape[1]}], got [{index.shape[0]}]")
    return SCATTER(x, index, channels, impl=impl)


def _fits(x: Tensor, index: Tensor, channels: int) -> bool:
    """What ``_check`` asks for; apart from it, since words take longer than a small copy."""
    if not (x.dim() >= 2 and index.dim() == 1 and index.dtype == torch.int64):
        return False
    return index.device == x.device and (not _has_values(index) or _in_range(index, channels))


def _has_values(index: Tensor) -> bool:
    return not (torch.compiler.is_compiling() or index.is_meta or index.numel() == 0)


def _in_range(index: Tensor, channels: int) -> bool:
    low, high = index.aminmax()
    return int(low) >= 0 and int(high) < channels


def _check(x: Tensor, index: Tensor, channels: int) -> None:
    """Says what is wrong."""
    check_channels(x)
    check(index.dim() == 1, f"expected index of 1 dimension, got {index.dim()}")
    check_dtype(index, (torch.int64,), "index")
    check(index.device == x.device, f"index on {index.device}, x on {x.device}")
    low, high = (int(end) for end in index.aminmax())
    check(low >= 0 and high < channels, f"expected index in [0, {channels}), got {low} to {high}")


gather_channels.OP = OP  # type: ignore[attr-defined]
gather_channels.SCATTER = SCATTER  # type: ignore[attr-defined]
