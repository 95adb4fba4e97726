"""The tasks of ``bench.methods.consensus``: real images for a ResNet-20, as small as two shared cores need them."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import nn

from bench.methods import data, models
from bench.methods.data import Task
from bench.methods.split import Split
from bench.methods.subsets import cut
from evoprune_kernels._check import check

#: training, validation and test images of the full task
SIZES = (3000, 1000, 4000)
#: the network of each task, as ``models.resnet`` takes it
SHAPES = {
    "consensus-fashion": {"channels": 1, "width": 8, "blocks": 3},
    "consensus-cifar": {"channels": 3, "width": 16, "blocks": 3},
    "consensus-digits": {"channels": 1, "width": 8, "blocks": 1},
}


def load(name: str, folder: Path | None, width: int | None = None) -> Task:
    """The task ``name`` of ``SHAPES``, with a network of that width or of another one."""
    check(name in SHAPES, f"expected a task of {sorted(SHAPES)}, got {name!r}")
    makers = {"consensus-fashion": fashion, "consensus-cifar": cifar, "consensus-digits": digits}
    return makers[name](folder, shape_of(name, width))


def shape_of(name: str, width: int | None = None) -> dict[str, int]:
    """The arguments of ``models.resnet`` for a task."""
    return SHAPES[name] if width is None else {**SHAPES[name], "width": width}


def fashion(folder: Path | None, shape: dict[str, int]) -> Task:
    """A part of Fashion-MNIST at 14x14."""
    return _scaled(
        data.load("fashion", folder),
        "consensus-fashion",
        "not CIFAR-10, which no package carries",
        shape,
    )


def cifar(folder: Path | None, shape: dict[str, int]) -> Task:
    """A part of CIFAR-10 at 16x16."""
    return _scaled(data.load("cifar", folder), "consensus-cifar", "", shape)


def digits(folder: Path | None, shape: dict[str, int]) -> Task:
    """scikit-learn's digits with a ResNet-8 of width 8: seconds, for tests of the program."""
    task = data.load("digits", folder)
    return Task(
        "consensus-digits",
        task.train,
        task.validation,
        task.test,
        make_model=lambda seed: _network(shape, seed),
        batch_size=32,
        epochs=4,
        lr=0.05,
        source=task.source,
        scaled_down="a task of no paper, with a ResNet-8 of width 8",
    )


def _scaled(task: Task, name: str, also: str, shape: dict[str, int]) -> Task:
    parts = (task.train, task.validation, task.test)
    train, validation, test = (_halved(part, size) for part, size in zip(parts, SIZES, strict=True))
    side, before = train.images.shape[-1], task.train.images.shape[-1]
    return Task(
        name,
        train,
        validation,
        test,
        make_model=lambda seed: _network(shape, seed),
        batch_size=32,
        epochs=5,
        lr=0.05,
        source=task.source.replace(", complete", ", a part"),
        scaled_down=(
            f"{also + '; ' if also else ''}{len(train):,} of the {len(task.train):,} training images, pooled from"
            f" {before}x{before} to {side}x{side}, 6 epochs in place of 160 to 200, no augmentation, a ResNet-20 of"
            f" width {shape['width']} (the papers': 16): its accuracies are not theirs"
        ),
    )


def _network(shape: dict[str, int], seed: int) -> nn.Module:
    """Channels last in memory: the faster one on a CPU."""
    network = models.seeded(lambda: models.resnet(**shape), seed)
    return network.to(memory_format=torch.channels_last)


def _halved(split: Split, size: int) -> Split:
    """A stratified part of ``size`` images, each 2x2 pixels averaged."""
    (rows,) = cut(split.labels, [size], data.CUT_SEED)
    part = split.take(rows)
    return Split(nn.functional.avg_pool2d(part.images, 2), part.labels)
