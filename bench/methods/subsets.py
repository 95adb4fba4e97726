"""Stratified cuts of a data set: train/validation/test, and the nested 10/25/50/100 % of a training set.

One order serves all: sample r (from 0) of the n of its class, in random order, stands at (r + 1/2) / n. Every prefix of
that order holds each class in its share, one sample more or less, so prefixes are stratified and nested.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from bench.methods.split import Split
from evoprune_kernels._check import check, check_dim

if TYPE_CHECKING:
    from bench.methods.data import Task

#: shares of the training set for the claim "works with smaller data sets"
SHARES = (0.1, 0.25, 0.5, 1.0)


def stratified_order(labels: Tensor, seed: int) -> Tensor:
    """A permutation [N] of the samples of which every prefix is stratified.

        key(sample) = (rank in a random order of its class + 1/2) / size of its class;  order = argsort(key)

    Args:
        labels: int64 [N].
        seed: of the random order within the classes.

    Notes:
        Ties of the key: the lower label first. The same labels and seed give the same order.
    """
    check_dim(labels, 1, "labels")
    generator = torch.Generator().manual_seed(seed)
    rows, keys = [], []
    for label in labels.unique(sorted=True):
        members = (labels == label).nonzero().flatten()
        rows.append(members[torch.randperm(len(members), generator=generator)])
        keys.append((torch.arange(len(members), dtype=torch.float64) + 0.5) / len(members))
    if not rows:
        return torch.empty(0, dtype=torch.int64)
    return torch.cat(rows)[torch.cat(keys).argsort(stable=True)]


def cut(labels: Tensor, sizes: Sequence[int], seed: int) -> list[Tensor]:
    """Disjoint stratified sets of ``sizes`` samples: rows of ``labels`` [N], each set in ascending order.

    Raises:
        ValueError: if a size is negative or the sizes sum to more than N.
    """
    check(min(sizes) >= 0, f"expected sizes of at least 0, got {list(sizes)}")
    total = sum(sizes)
    check(total <= len(labels), f"expected at most {len(labels)} samples, got {list(sizes)}")
    parts = stratified_order(labels, seed)[:total].split(list(sizes))
    return [part.sort().values for part in parts]


def subset(split: Split, share: float, seed: int) -> Split:
    """The stratified ``share`` of ``split``; with one seed, a smaller share lies within a larger one.

    Args:
        split: labels [N].
        share: in (0, 1]; ``round(share * N)`` samples, at least one, are kept.
        seed: 0 .. 2**63 - 1.
    """
    check(0.0 < share <= 1.0, f"expected a share in (0, 1], got {share}")
    size = max(1, round(share * len(split)))
    return split.take(cut(split.labels, [size], seed)[0])


def shrink(task: Task, share: float, seed: int = 0) -> Task:
    """``task`` on the ``share`` of its training set, for as many steps: with so many more epochs, to the nearest."""
    train = subset(task.train, share, seed)
    steps = [-(-len(split) // task.batch_size) for split in (task.train, train)]
    epochs = max(1, round(task.epochs * steps[0] / steps[1]))
    return dataclasses.replace(task, train=train, epochs=epochs)
