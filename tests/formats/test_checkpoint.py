"""Checkpoints: round trips, what is in the file, and files that are damaged or hostile."""

from __future__ import annotations

import json
import random
import re
import struct

import pytest
import safetensors.torch
import torch

from evoprune_kernels import formats, ops
from evoprune_kernels.formats import BitmaskWeight, BlockWeight, NMWeight, PackedWeight


def weights(dtype: torch.dtype = torch.float32) -> dict[str, PackedWeight | torch.Tensor]:
    """One weight of every format, with tails, and two dense tensors."""
    torch.manual_seed(1)
    dense = torch.randn(9, 22).to(dtype)
    mask = ops.select_nm(dense.abs(), 2, 4)
    blocks = torch.rand(3, 6).lt(0.5).repeat_interleave(4, 0).repeat_interleave(4, 1)[:9, :22]
    return {
        "h.0.fc": NMWeight.pack(dense, 2, 4, mask=mask),
        "h.0.proj": BlockWeight.pack(dense, 4, 4, mask=blocks),
        "h.1.fc": BitmaskWeight.pack(dense, mask=torch.rand(9, 22) < 0.3),
        "h.1.proj": NMWeight.pack(dense, 2, 4, 16, mask=mask[:1].expand(9, -1)),
        "h.0.bias": torch.randn(9).to(dtype),
        "step": torch.tensor(7),
    }


def assert_equal(actual, expected) -> None:
    assert list(actual) == list(expected) or set(actual) == set(expected)
    for name, weight in expected.items():
        assert type(actual[name]) is type(weight), name
        if isinstance(weight, PackedWeight):
            assert actual[name].attributes() == weight.attributes()
            pairs = zip(actual[name].tensors().values(), weight.tensors().values(), strict=True)
        else:
            pairs = [(actual[name], weight)]
        for a, b in pairs:
            assert a.dtype == b.dtype
            assert torch.equal(a, b), name


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16, torch.float64])
def test_round_trip(tmp_path, dtype):
    saved = weights(dtype)
    formats.save(tmp_path / "m.safetensors", saved, {"note": "two layers"})
    assert_equal(formats.load(tmp_path / "m.safetensors"), saved)
    assert formats.read_metadata(str(tmp_path / "m.safetensors")) == {"note": "two layers"}
    assert [p.name for p in tmp_path.iterdir()] == ["m.safetensors"]


def test_nothing_and_empty_weights(tmp_path):
    formats.save(tmp_path / "empty", {})
    assert formats.load(tmp_path / "empty") == {}
    saved = {
        "a": NMWeight.pack(torch.zeros(0, 8), 2, 4),
        "b": BlockWeight.pack(torch.zeros(3, 0), 2, 2),
        "c": BitmaskWeight.pack(torch.zeros(4, 4)),
    }
    formats.save(tmp_path / "m", saved)
    assert_equal(formats.load(tmp_path / "m"), saved)


def test_any_safetensors_reader_reads_the_tensors(tmp_path):
    saved = weights()
    formats.save(tmp_path / "m", saved)
    plain = safetensors.torch.load_file(tmp_path / "m")
    assert torch.equal(plain["h.0.fc.meta"], saved["h.0.fc"].meta)
    assert torch.equal(plain["h.0.proj.col_idx"], saved["h.0.proj"].col_idx)
    assert torch.equal(plain["h.0.bias"], saved["h.0.bias"])
    assert len(plain) == 2 + 3 + 3 + 2 + 2


def test_shared_memory_and_views_are_written_whole(tmp_path):
    base = torch.randn(4, 6)
    saved = {
        "a": base,
        "b": base,
        "view": base[1:3, ::2],
        "t": base.t(),
        "p": torch.nn.Parameter(base),
    }
    formats.save(tmp_path / "m", saved)
    loaded = formats.load(tmp_path / "m")
    assert all(torch.equal(loaded[name], tensor) for name, tensor in saved.items())


def test_loaded_tensors_outlive_their_file(tmp_path):
    saved = weights()
    formats.save(tmp_path / "m", saved)
    loaded = formats.load(tmp_path / "m")
    with open(tmp_path / "m", "r+b") as file:
        file.truncate(10)
    assert_equal(loaded, saved)


# ---- what cannot be saved ----
def test_an_invalid_weight_is_not_saved_and_leaves_the_old_file(tmp_path):
    formats.save(tmp_path / "m", weights())
    before = (tmp_path / "m").read_bytes()
    bad = NMWeight(torch.zeros(1, 2), torch.zeros(1, 1, dtype=torch.uint8), 2, 4, (1, 4))
    with pytest.raises(ValueError, match=r"layer 'fc': .*indices do not increase"):
        formats.save(tmp_path / "m", {"fc": bad})
    assert (tmp_path / "m").read_bytes() == before
    assert len(list(tmp_path.iterdir())) == 1


@pytest.mark.parametrize(
    "saved, metadata, error, message",
    [
        ({"fc": [1.0]}, None, TypeError, "layer 'fc': expected a packed weight or a tensor"),
        ({"fc": torch.ones(1)}, {"a": 1}, TypeError, "metadata of text"),
        ({"fc": torch.ones(1)}, {"evoprune.x": "1"}, ValueError, "'evoprune.x'"),
        (
            {"fc": BitmaskWeight.pack(torch.ones(1, 1)), "fc.bits": torch.ones(1)},
            None,
            ValueError,
            "two tensors named 'fc.bits'",
        ),
    ],
)
def test_save_rejects(tmp_path, saved, metadata, error, message):
    with pytest.raises(error, match=message):
        formats.save(tmp_path / "m", saved, metadata)
    assert list(tmp_path.iterdir()) == []


# ---- hostile files ----
def rewrite(path, change) -> None:
    """Applies ``change(tensors, metadata)`` to a saved file."""
    with safetensors.safe_open(str(path), "pt") as file:
        metadata = dict(file.metadata())
        tensors = {name: file.get_tensor(name).clone() for name in file.keys()}  # noqa: SIM118
    packed = json.loads(metadata["evoprune.packed"])
    change(tensors, metadata, packed)
    if metadata.get("evoprune.packed", "").startswith("{"):
        metadata["evoprune.packed"] = json.dumps(packed)
    safetensors.torch.save_file(tensors, path, metadata=metadata)


def put(name: str, tensor: torch.Tensor):
    return lambda t, m, p: t.__setitem__(name, tensor)


def attribute(layer: str, key: str, value: object):
    return lambda t, m, p: p[layer].__setitem__(key, value)


def text(key: str, value: str):
    return lambda t, m, p: m.__setitem__(key, value)


def add(name: str, index: tuple[int, ...], amount: int):
    def change(t, m, p):
        t[name][index] += amount

    return change


LAYER = r"layer 'h\.\d\.\w+'"
HOSTILE = {
    "version": (text("evoprune.version", "2"), "expected format version '1', got '2'"),
    "no version": (lambda t, m, p: m.pop("evoprune.version"), "not written by this package"),
    "no JSON": (text("evoprune.packed", "["), "is no JSON"),
    "deep JSON": (text("evoprune.packed", "[" * 100_000), "is no JSON"),
    "JSON of another kind": (text("evoprune.packed", "[1]"), "expected layer -> attributes"),
    "attributes of another kind": (attribute("h.0.fc", "shape", 3), "expected layer -> attributes"),
    "no format": (lambda t, m, p: p["h.0.fc"].pop("format"), f"{LAYER}: .*got None"),
    "unknown format": (attribute("h.0.fc", "format", "csr"), f"{LAYER}: .*got 'csr'"),
    "other format": (attribute("h.0.fc", "format", "block"), f"{LAYER}: .*missing"),
    "unknown pattern": (attribute("h.0.fc", "pattern", "2;4"), f"{LAYER}: unknown pattern '2;4'"),
    "other pattern": (attribute("h.0.fc", "pattern", "1:4"), LAYER),
    "pattern out of range": (attribute("h.0.fc", "pattern", "2:99"), f"{LAYER}: .*2:99"),
    "pattern of another format": (attribute("h.0.fc", "pattern", "block:2x2"), LAYER),
    "other block": (attribute("h.0.proj", "pattern", "block:4x8"), LAYER),
    "shape not numbers": (attribute("h.0.fc", "shape", "9xK"), f"{LAYER}: .*'9xK'"),
    "shape missing": (lambda t, m, p: p["h.1.fc"].pop("shape"), LAYER),
    "shape too wide": (attribute("h.0.fc", "shape", "9x40"), f"{LAYER}: .*got"),
    "shape too tall": (attribute("h.0.proj", "shape", "99x22"), f"{LAYER}: .*got"),
    "shape enormous": (attribute("h.0.proj", "shape", "9x999999999999999999"), f"{LAYER}: .*got"),
    "tensor missing": (lambda t, m, p: t.pop("h.0.fc.meta"), f"{LAYER}: .*missing.*meta"),
    "tensor and layer of one name": (put("h.0.fc", torch.ones(1)), f"{LAYER}: both"),
    "layer that is not there": (
        lambda t, m, p: p.__setitem__("h.9.fc", p["h.0.fc"]),
        r"layer 'h.9.fc': .*missing",
    ),
    "values of another dtype": (
        put("h.0.fc.values", torch.ones(9, 12, dtype=torch.int32)),
        f"{LAYER}: .*int32",
    ),
    "values of another shape": (put("h.0.fc.values", torch.ones(9, 11)), f"{LAYER}: .*11"),
    "values of another dimension": (put("h.0.proj.values", torch.ones(9)), LAYER),
    "values without dimension": (put("h.0.proj.values", torch.tensor(1.0)), LAYER),
    "meta of another dtype": (
        put("h.0.fc.meta", torch.ones(9, 3, dtype=torch.int64)),
        f"{LAYER}: .*int64",
    ),
    "indices equal": (
        put("h.0.fc.meta", torch.zeros(9, 3, dtype=torch.uint8)),
        f"{LAYER}: .*do not increase",
    ),
    "row_ptr beyond": (add("h.0.proj.row_ptr", (-1,), 1), f"{LAYER}: row_ptr"),
    "row_ptr falls": (add("h.0.proj.row_ptr", (1,), 1000), f"{LAYER}: row_ptr"),
    "row_ptr starts late": (add("h.1.fc.row_ptr", (0,), 1), f"{LAYER}: row_ptr"),
    "row_ptr empty": (put("h.1.fc.row_ptr", torch.zeros(0, dtype=torch.int32)), LAYER),
    "column negative": (add("h.0.proj.col_idx", (0,), -9), f"{LAYER}: col_idx"),
    "column beyond": (add("h.0.proj.col_idx", (-1,), 100), f"{LAYER}: col_idx"),
    "bits and counts differ": (add("h.1.fc.row_ptr", (1,), -1), f"{LAYER}: bits"),
    "spare bits": (put("h.1.fc.bits", torch.full((9, 3), 255, dtype=torch.uint8)), LAYER),
}


@pytest.mark.parametrize("name", HOSTILE)
def test_hostile_file(tmp_path, name):
    change, message = HOSTILE[name]
    path = tmp_path / "model.safetensors"
    formats.save(path, weights())
    rewrite(path, change)
    with pytest.raises(ValueError, match=message) as caught:
        formats.load(path)
    assert str(path) in str(caught.value)


def test_a_plain_safetensors_file_is_refused(tmp_path):
    safetensors.torch.save_file({"a": torch.ones(1)}, tmp_path / "m")
    with pytest.raises(ValueError, match="not written by this package"):
        formats.load(tmp_path / "m")
    with pytest.raises(ValueError, match="not written by this package"):
        formats.read_metadata(tmp_path / "m")


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"\0",
        b"\0" * 8,
        b"\xff" * 64,
        struct.pack("<Q", 2**63) + b"{}",
        struct.pack("<Q", 2) + b"[]",
    ],
    ids=["empty", "one byte", "zeros", "ones", "huge header", "list header"],
)
def test_no_safetensors_file(tmp_path, content):
    (tmp_path / "m").write_bytes(content)
    with pytest.raises(ValueError, match=re.escape(str(tmp_path / "m"))):
        formats.load(tmp_path / "m")


def test_missing_file(tmp_path):
    with pytest.raises(FileNotFoundError):
        formats.load(tmp_path / "nothing")


def test_truncated_anywhere(tmp_path):
    path = tmp_path / "m"
    formats.save(path, weights())
    whole = path.read_bytes()
    for length in range(0, len(whole), 37):
        path.write_bytes(whole[:length])
        with pytest.raises(ValueError, match=re.escape(str(path))):
            formats.load(path)


def load_or_value_error(path) -> bool:
    """Whether the file loads; what it gives is then valid and unpacks to its shape."""
    try:
        loaded = formats.load(path)
    except ValueError as error:
        assert str(path) in str(error)
        return False
    for weight in loaded.values():
        if isinstance(weight, PackedWeight):
            weight.validate()
            assert weight.unpack().shape == weight.shape
    return True


def test_flipped_bits(tmp_path):
    """Bytes of the header, then of the tensors: a valid weight or a ValueError, never a crash."""
    path = tmp_path / "m"
    formats.save(path, weights())
    whole = path.read_bytes()
    header = 8 + struct.unpack("<Q", whole[:8])[0]
    generator = random.Random(0)
    positions = generator.sample(range(header), 300) + generator.sample(
        range(header, len(whole)), 150
    )
    outcomes = []
    for position in positions:
        damaged = bytearray(whole)
        damaged[position] ^= 1 << generator.randrange(8)
        path.write_bytes(damaged)
        outcomes.append(load_or_value_error(path))
    assert 0 < sum(outcomes) < len(outcomes), "the fuzz saw one outcome only"
