"""The one ranking rule of the selections that compare scores of a whole tensor."""

from __future__ import annotations

import torch
from torch import Tensor

_INTEGER = {torch.float32: torch.int32, torch.float64: torch.int64}


def ordered_keys(scores: Tensor) -> Tensor:
    """Integers in the order of ``scores`` (fp32 or fp64): -0.0 equals +0.0, NaN is below -inf.

    The bits of a positive float already order like an integer; those of a negative one are mirrored.
    """
    integer = _INTEGER[scores.dtype]
    bits = (scores + 0.0).view(integer)
    lowest = torch.iinfo(integer).min
    keys = torch.where(bits < 0, lowest - bits, bits)
    return keys.masked_fill_(scores.isnan(), lowest)


def keep_highest(scores: Tensor, count: int) -> Tensor:
    """bool mask of the ``count`` highest entries of ``scores``; ties: the lowest flat index wins."""
    size = scores.numel()
    if count <= 0 or count >= size:
        return torch.full_like(scores, count > 0, dtype=torch.bool)
    keys = ordered_keys(scores.reshape(-1))
    threshold = keys.kthvalue(size - count + 1).values
    mask = keys > threshold
    tied = (keys == threshold).nonzero().squeeze(1)
    mask[tied[: count - int(mask.sum())]] = True
    return mask.view(scores.shape)
