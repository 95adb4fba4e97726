"""PackedWeight.quantize: int8 values and a scale for each row, in every format; files; hostile scales."""

from __future__ import annotations

import dataclasses

import pytest
import torch

from evoprune_kernels import formats, ops

PATTERNS = ("2:4", "2:4v16", "3:8", "block:4x3", "block:16x16", "unstructured")


def pruned(pattern, rows=37, columns=45, dtype=torch.float32):
    generator = torch.Generator().manual_seed(3)
    weight = torch.randn(rows, columns, generator=generator).to(dtype)
    if pattern.startswith("block"):
        _, _, edges = pattern.partition(":")
        bn, bk = map(int, edges.split("x"))
        return weight * ops.select_block(weight.abs().float(), bn, bk, 0.4)
    if pattern == "unstructured":
        return weight * ops.select_topk(weight.abs().float(), 0.3)
    n, m, shared = formats.parse_pattern(pattern).arguments()
    return weight * ops.select_nm(weight.abs().float(), n, m, shared=shared)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("pattern", PATTERNS)
def test_every_weight_is_within_half_a_step(pattern, dtype):
    weight = pruned(pattern, dtype=dtype)
    weight[5] = 0
    packed = formats.pack(weight, pattern).quantize()
    packed.validate()
    assert packed.dtype == torch.int8 and packed.scale.dtype == torch.float32
    expected = weight.float().abs().amax(1) / 127
    assert torch.equal(packed.scale, expected)
    back = packed.unpack()
    assert back.dtype == torch.float32
    assert torch.equal(
        back != 0, (weight.float() / expected.clamp(min=1e-30)[:, None]).round() != 0
    )
    assert ((back - weight.float()).abs() <= expected[:, None] * (0.5 + 1e-4)).all()
    largest = weight.float().abs().argmax(1)
    kept = expected > 0
    picked = back.gather(1, largest[:, None])[kept, 0]
    assert torch.allclose(picked.abs(), expected[kept] * 127)  # the largest of a row is 127 steps


@pytest.mark.parametrize("pattern", PATTERNS)
def test_files_keep_the_scale(pattern, tmp_path):
    packed = formats.pack(pruned(pattern), pattern).quantize()
    formats.save(tmp_path / "w.safetensors", {"fc": packed})
    loaded = formats.load(tmp_path / "w.safetensors")["fc"]
    assert type(loaded) is type(packed) and loaded.attributes() == packed.attributes()
    for name, tensor in packed.tensors().items():
        assert torch.equal(loaded.tensors()[name], tensor)


@pytest.mark.parametrize("pattern", PATTERNS)
def test_hostile_scales_are_refused(pattern):
    packed = formats.pack(pruned(pattern), pattern).quantize()
    for bad, error in [
        (torch.full((37,), float("nan")), ValueError),
        (-packed.scale - 1, ValueError),
        (packed.scale[:-1], ValueError),
        (packed.scale[:, None], ValueError),
        (packed.scale.double(), TypeError),
    ]:
        with pytest.raises(error, match="scale"):
            dataclasses.replace(packed, scale=bad).validate()
    with pytest.raises(TypeError, match="values"):
        dataclasses.replace(packed, scale=None).validate()
    with pytest.raises(TypeError, match="values"):
        dataclasses.replace(formats.pack(pruned(pattern), pattern), scale=packed.scale).validate()
    low = packed.values.clone()
    low[low == 127] = -128
    with pytest.raises(ValueError, match="-128"):
        dataclasses.replace(packed, values=low).validate()


def test_what_has_no_int8_form():
    weight = pruned("2:4")
    packed = formats.pack(weight, "2:4")
    with pytest.raises(ValueError, match="already"):
        packed.quantize().quantize()
    with pytest.raises(TypeError, match="int8"):
        packed.quantize().to(torch.bfloat16)
    weight[weight != 0] = float("nan")
    with pytest.raises(ValueError, match="NaN"):
        formats.pack(weight, "2:4").quantize()
    for shape in [(0, 8), (8, 0)]:
        empty = formats.pack(torch.zeros(shape), "2:4").quantize()
        empty.validate()
        assert empty.unpack().shape == shape
