"""Argument checks: every message names the argument and holds both values."""

from __future__ import annotations

from collections.abc import Iterable

import torch


def check(condition: bool, message: str) -> None:
    """Raise ``ValueError(message)`` unless ``condition``; traceable by ``torch.compile``."""
    if not condition:
        raise ValueError(message)


def check_dtype(tensor: torch.Tensor, allowed: Iterable[torch.dtype], name: str) -> None:
    """Raise ``TypeError`` unless ``tensor.dtype`` is one of ``allowed``."""
    allowed = tuple(allowed)
    if tensor.dtype not in allowed:
        expected = " or ".join(str(d) for d in allowed)
        raise TypeError(f"expected {name} of dtype {expected}, got {tensor.dtype}")


def check_dim(tensor: torch.Tensor, dim: int, name: str) -> None:
    """Raise ``ValueError`` unless ``tensor`` has ``dim`` dimensions."""
    if tensor.dim() != dim:
        raise ValueError(
            f"expected {name} of {dim} dimensions, got {tensor.dim()} (shape {tuple(tensor.shape)})"
        )


def check_shape(tensor: torch.Tensor, shape: tuple[int, ...], name: str) -> None:
    """Raise ``ValueError`` unless ``tensor.shape == shape``."""
    if tuple(tensor.shape) != tuple(shape):
        raise ValueError(f"expected {name} of shape {tuple(shape)}, got {tuple(tensor.shape)}")
