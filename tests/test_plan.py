"""``_native.plan``: which kernel takes which tokens; and every kernel that a plan may name gives the right result."""

from __future__ import annotations

import pytest
import torch
from torch.nn import functional as F

from evoprune_kernels import _ext, formats, ops
from tests.tolerance import assert_accurate

if _ext.native is None:
    pytest.skip(f"no _native: {_ext.reasons.get('_native')}", allow_module_level=True)

plan = _ext.native.plan
LEVELS = ("baseline", "avx2", "avx512", "avx512vnni")
PANELS = (0, 16, 32, 64)


@pytest.mark.parametrize("level", LEVELS)
@pytest.mark.parametrize("pattern", ["2:4", "1:4", "3:4", "2:4v16", "block:16x16", "unstructured"])
def test_parts_cover_every_token_once(pattern, level):
    for tokens in (0, 1, 2, 7, 8, 15, 16, 17, 31, 33, 63, 64, 65, 100, 127, 129, 1000):
        parts = plan(pattern, 768, 768, tokens, level)
        assert sum(part["tokens"] for part in parts) == tokens
        assert all(part["tokens"] > 0 for part in parts[:-1])


@pytest.mark.parametrize("level", LEVELS)
def test_an_nm_panel_is_at_most_half_empty(level):
    for tokens in range(1, 200):
        parts = plan("2:4", 3072, 768, tokens, level)
        for part in parts:
            if part["panel"]:
                assert part["kernel"] == "nm_linear_tokens" and part["lanes"] == "tokens"
                padded = -(-part["tokens"] // part["panel"]) * part["panel"]
                assert padded - part["tokens"] < part["panel"] / 2
            else:
                assert part["kernel"] == "nm_linear" and part["lanes"] == "rows"


@pytest.mark.parametrize("level", LEVELS)
def test_few_tokens_and_other_patterns_have_rows_in_lanes(level):
    assert [p["kernel"] for p in plan("2:4", 64, 64, 1, level)] == ["nm_linear"]
    assert [p["kernel"] for p in plan("3:4", 64, 64, 100, level)] == ["nm_linear"]
    assert plan("block:32x8", 64, 64, 100, level)[0]["lanes"] == "rows"
    assert plan("2:4v16", 64, 64, 100, level)[0]["lanes"] == "rows"
    assert plan("block:4x8", 64, 64, 100, level)[0]["lanes"] == "tokens"
    assert plan("unstructured", 64, 64, 1, level)[0] == {
        "kernel": "bitmask_linear", "lanes": "tokens", "tokens": 1, "panel": 0,
        "chunk": plan("unstructured", 64, 64, 1, level)[0]["chunk"],
    }  # fmt: skip


@pytest.mark.parametrize(
    "arguments, message",
    [
        (("2:5:6", 8, 8, 1, "avx2"), "expected a pattern"),
        (("5:4", 8, 8, 1, "avx2"), "expected a pattern"),
        (("2:4v8", 8, 8, 1, "avx2"), "expected a pattern"),
        (("block:0x4", 8, 8, 1, "avx2"), "expected a pattern"),
        (("channel", 8, 8, 1, "avx2"), "got channel"),
        (("2:4", -1, 8, 1, "avx2"), "got -1x8"),
        (("2:4", 8, 8, -1, "avx2"), "got -1"),
        (("2:4", 8, 8, 1, "sse"), "got sse"),
        (("2:4", 8, 8, 1, "avx2", 3), "got 3"),
    ],
)
def test_errors(arguments, message):
    with pytest.raises(ValueError, match=message):
        plan(*arguments)


@pytest.fixture(params=PANELS)
def panel(request):
    """Every token goes through panels of this size."""
    if not _ext.cpu_loaded():
        pytest.skip(f"no kernels: {_ext.reasons['_cpu']}")
    torch.ops.evoprune_raw.force_nm_panel(request.param)
    yield request.param
    torch.ops.evoprune_raw.force_nm_panel(-1)


@pytest.mark.parametrize("stored", ["float32", "bfloat16", "int8"])
@pytest.mark.parametrize("pattern", ["2:4", "1:4", "3:4"])
def test_every_part_is_right(pattern, stored, panel, isa, threads):
    weight = torch.randn(35, 333)
    packed = formats.pack(weight * ops.select_nm(weight.abs(), int(pattern[0]), 4), pattern)
    if stored != "float32":
        packed = packed.quantize() if stored == "int8" else packed.to(torch.bfloat16)
    weight, bias = packed.unpack().float(), torch.randn(35)
    for tokens in (1, 5, 15, 16, 33, 64, 70, 129):
        x = torch.randn(tokens, 333)
        y = ops.linear(x, packed, bias, "relu")
        truth = F.relu(F.linear(x.double(), weight.double(), bias.double()))
        assert_accurate(y, truth, F.relu(F.linear(x, weight, bias)))


def test_forced_panel_is_checked():
    with pytest.raises(RuntimeError, match="got 17"):
        torch.ops.evoprune_raw.force_nm_panel(17)
