"""What the ops on activations [B, C, ...] share: memory format, gates as factors, and the checks of both."""

from __future__ import annotations

import torch
from torch import Tensor

from evoprune_kernels._check import check, check_dtype


def memory_format(x: Tensor) -> torch.memory_format:
    """What a result for ``x`` is stored in: channels_last where x is and is not contiguous too, else contiguous."""
    if x.dim() != 4 or x.is_contiguous():
        return torch.contiguous_format
    if x.is_contiguous(memory_format=torch.channels_last):
        return torch.channels_last
    return torch.contiguous_format


def empty_channels(x: Tensor, channels: int) -> Tensor:
    """An empty tensor as ``x``, in its memory format, with another number of channels."""
    shape = (x.shape[0], channels, *x.shape[2:])
    return torch.empty(shape, dtype=x.dtype, device=x.device, memory_format=memory_format(x))


def spread(gates: Tensor, x: Tensor) -> Tensor:
    """``gates`` [C] or [B, C] as a view that multiplies ``x`` [B, C, ...]."""
    return gates.reshape(*gates.shape, *[1] * (x.dim() - 2))


def gates_fit(x: Tensor, gates: Tensor) -> bool:
    """What ``check_gates`` asks for; apart from it, since words take longer than a small product."""
    return (
        x.dim() >= 2
        and gates.shape in (x.shape[1:2], x.shape[:2])
        and x.is_floating_point()
        and gates.dtype in (torch.float32, x.dtype)
        and gates.device == x.device
    )


def check_channels(x: Tensor) -> None:
    """``ValueError`` unless x is [B, C, ...]."""
    check(
        x.dim() >= 2, f"expected x of 2 dimensions or more, got {x.dim()} (shape {tuple(x.shape)})"
    )


def check_gates(x: Tensor, gates: Tensor) -> None:
    """``ValueError`` or ``TypeError``: x is [B, C, ...] of a float dtype, gates are [C] or [B, C], float32 or as x."""
    check_channels(x)
    shapes = (tuple(x.shape[1:2]), tuple(x.shape[:2]))
    check(
        tuple(gates.shape) in shapes,
        f"expected gates of shape {shapes[0]} or {shapes[1]}, got {tuple(gates.shape)}",
    )
    check(x.is_floating_point(), f"expected x of a float dtype, got {x.dtype}")
    check_dtype(gates, dict.fromkeys((torch.float32, x.dtype)), "gates")
    check(gates.device == x.device, f"gates on {gates.device}, x on {x.device}")
