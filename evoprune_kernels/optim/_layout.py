"""How the tensors of one parameter lie in memory: local shards, dense layouts, and one layout for all of them.

Fused kernels walk the memory of a parameter, its gradient and its states in lockstep, so all must be dense and have the
same strides. torch's fused CPU kernels do not check that and write wrong values, even into neighbouring memory.
"""

from __future__ import annotations

from typing import Any

from torch import Tensor


def is_distributed(tensor: Tensor) -> bool:
    """Whether ``tensor`` is a DTensor (told without importing torch.distributed)."""
    return hasattr(tensor, "to_local")


def local(tensor: Tensor) -> Tensor:
    """The shard of this rank; a plain tensor is returned as it is."""
    return tensor.to_local() if hasattr(tensor, "to_local") else tensor


def local_like(tensor: Tensor, param: Tensor) -> Tensor:
    """The shard of ``tensor`` that belongs to the shard of ``param``; redistributed where it is laid out otherwise."""
    if not is_distributed(tensor):
        return tensor
    other: Any = tensor
    like: Any = param
    if is_distributed(param) and tuple(other.placements) != tuple(like.placements):
        other = other.redistribute(placements=like.placements)
    return local(other)


def is_dense(tensor: Tensor) -> bool:
    """Whether the elements fill one block of memory without gaps or overlaps, in any order of dimensions.

    Example:
        >>> import torch
        >>> is_dense(torch.zeros(3, 4).t()), is_dense(torch.zeros(6, 2)[:, 0])
        (True, False)
    """
    if tensor.is_contiguous():
        return True
    expected = 1
    for stride, size in sorted(zip(tensor.stride(), tensor.shape, strict=True)):
        if size == 1:
            continue
        if stride != expected:
            return False
        expected *= size
    return True


def same_layout(a: Tensor, b: Tensor) -> bool:
    """Whether equal indices lie at equal offsets; dimensions of size 1 do not count."""
    if a.shape != b.shape:
        return False
    if a.is_contiguous() and b.is_contiguous():
        return True
    pairs = zip(a.stride(), b.stride(), a.shape, strict=True)
    return all(x == y or size == 1 for x, y, size in pairs)


def fused_is_safe(param: Tensor, others: list[Tensor]) -> bool:
    """Whether torch's fused kernels are right for this parameter: dense, and everything in one layout."""
    return is_dense(param) and all(same_layout(param, other) for other in others)
