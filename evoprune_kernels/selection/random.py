"""Randomness of selections: it depends on numbers that a caller knows, never on a generator's state or the device.

    key of an entry = Philox(counter = (its flat index, tensor, draw), key = seed)

A run that is resumed, or that runs on another device or on many ranks, draws the same.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from evoprune_kernels._check import check
from evoprune_kernels.ops._philox import philox

_WORD = 0xFFFFFFFF
#: keeps these draws apart from those of stochastic rounding under the same seed
_SELECTION = 0x5E1EC7ED << 32


def random_keys(
    shape: Sequence[int],
    *,
    seed: int,
    tensor: int = 0,
    draw: int = 0,
    device: torch.device | str | None = None,
) -> Tensor:
    """63 random bits for each entry.

    Args:
        shape: of the result.
        seed: of the run, any integer (64 bits count).
        tensor: number of the tensor in the model, 0 <= tensor < 2^32.
        draw: number of the draw (an epoch, a step), 0 <= draw < 2^32.
        device: of the result.

    Returns:
        int64 >= 0, of ``shape``.

    Raises:
        ValueError: if ``tensor`` or ``draw`` is out of range.
    """
    check(0 <= tensor <= _WORD, f"expected 0 <= tensor < 2^32, got {tensor}")
    check(0 <= draw <= _WORD, f"expected 0 <= draw < 2^32, got {draw}")
    index = torch.arange(torch.Size(shape).numel(), device=device)
    fixed = torch.zeros_like(index)
    words = philox((index & _WORD, index >> 32, fixed + tensor, fixed + draw), seed ^ _SELECTION)
    return (words[0] << 31 | words[1] >> 1).view(tuple(shape))


def random_scores(
    shape: Sequence[int],
    *,
    seed: int,
    tensor: int = 0,
    draw: int = 0,
    device: torch.device | str | None = None,
) -> Tensor:
    """Uniform scores in [0, 1): what SET grows by.

    ``scores = random 24 bits / 2^24``

    Args:
        shape: of the result.
        seed: of the run, any integer (64 bits count).
        tensor: number of the tensor in the model, 0 <= tensor < 2^32.
        draw: number of the draw (an epoch, a step), 0 <= draw < 2^32.
        device: of the result.

    Returns:
        float32, of ``shape``.

    Raises:
        ValueError: if ``tensor`` or ``draw`` is out of range.

    Notes:
        The same on every device. 24 bits are what float32 holds exactly.

    Source:
        Salmon et al., "Parallel Random Numbers: As Easy as 1, 2, 3", SC 2011.

    Example:
        >>> scores = random_scores((2, 3), seed=1)
        >>> scores.shape, bool(((scores >= 0) & (scores < 1)).all())
        (torch.Size([2, 3]), True)
    """
    keys = random_keys(shape, seed=seed, tensor=tensor, draw=draw, device=device)
    return (keys >> 39).float() * 2.0**-24


def random_mask(
    shape: Sequence[int],
    kept: float,
    *,
    seed: int,
    tensor: int = 0,
    draw: int = 0,
    device: torch.device | str | None = None,
) -> Tensor:
    """Keep exactly ``round(kept * entries)`` entries, each choice alike: the control arm, and where SET starts.

    ``mask[i] = random key of i is among the round(kept * entries) lowest``

    Args:
        shape: of the mask.
        kept: share in [0, 1].
        seed: of the run, any integer (64 bits count).
        tensor: number of the tensor in the model, 0 <= tensor < 2^32: tensors of one shape get masks of their own.
        draw: number of the draw (an epoch, a step), 0 <= draw < 2^32.
        device: of the mask.

    Returns:
        bool, of ``shape``, True = keep.

    Raises:
        ValueError: if ``kept``, ``tensor`` or ``draw`` is out of range.

    Notes:
        The same on every device. A mask that keeps less is contained in one that keeps more.

    Source:
        Mocanu et al., "Scalable training of artificial neural networks with adaptive sparse connectivity inspired by
        network science", Nature Communications 2018 (sparse initialisation).

    Example:
        >>> int(random_mask((4, 5), 0.3, seed=1).sum())
        6
    """
    check(0 <= kept <= 1, f"expected 0 <= kept <= 1, got {kept}")
    keys = random_keys(shape, seed=seed, tensor=tensor, draw=draw, device=device).reshape(-1)
    mask = torch.zeros(keys.numel(), dtype=torch.bool, device=keys.device)
    mask[keys.sort(stable=True).indices[: round(kept * keys.numel())]] = True
    return mask.view(tuple(shape))
