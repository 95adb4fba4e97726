"""Data as whole tensors: a ``Split`` of inputs and labels, and ``Batches`` of it in an order that can be repeated."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from evoprune_kernels._check import check

#: epochs that a seed of ``Batches`` has before it meets the next seed's
EPOCHS = 1_000_003


@dataclass(frozen=True)
class Split:
    """``images`` [N, ...] (float32 in 0-1; int64 characters for text) and their ``labels`` (int64, [N] or [N, T])."""

    images: Tensor
    labels: Tensor

    def __post_init__(self) -> None:
        check(
            len(self.images) == len(self.labels),
            f"expected as many labels as images, got {len(self.labels)} and {len(self.images)}",
        )

    def __len__(self) -> int:
        return len(self.images)

    def take(self, rows: Tensor) -> Split:
        """The images and labels at ``rows`` (int64), in that order."""
        return Split(self.images[rows], self.labels[rows])


class Batches:
    """Every image of a split once, in batches: a train loader without workers or copies of single images.

        order = randperm(N, generator of (seed, epoch)); batch i = order[i * batch_size : (i + 1) * batch_size]

    Args:
        split: what to go through.
        batch_size: images a batch; the last one is smaller where it does not divide N.
        seed: in 0 .. 2**40.

    Notes:
        Each pass over the object gives the same order until ``set_epoch`` names another epoch, as torch's
        ``DistributedSampler`` does. The global generator is neither used nor moved.

    Example:
        >>> batches = Batches(Split(torch.arange(5.0), torch.arange(5)), batch_size=2, seed=0)
        >>> [len(labels) for _, labels in batches]
        [2, 2, 1]
    """

    def __init__(self, split: Split, batch_size: int, seed: int) -> None:
        check(batch_size >= 1, f"expected a batch_size of at least 1, got {batch_size}")
        check(0 <= seed <= 2**40, f"expected a seed in 0 .. 2**40, got {seed}")
        self.split = split
        self.batch_size = batch_size
        self.seed = seed
        self.epoch = 0

    def set_epoch(self, epoch: int) -> None:
        """Choose the order of the next passes: ``epoch`` in 0 .. 1,000,002."""
        check(0 <= epoch < EPOCHS, f"expected an epoch in 0 .. {EPOCHS - 1}, got {epoch}")
        self.epoch = epoch

    def order(self) -> Tensor:
        """The permutation [N] of this epoch."""
        generator = torch.Generator().manual_seed(self.seed * EPOCHS + self.epoch)
        return torch.randperm(len(self.split), generator=generator)

    def __len__(self) -> int:
        return -(-len(self.split) // self.batch_size)

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
        for rows in self.order().split(self.batch_size) if len(self.split) else ():
            yield self.split.images[rows], self.split.labels[rows]
