"""The runner itself: a kernel that is wrong is caught, and the launcher's arguments arrive as they are."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
import torch

triton = pytest.importorskip("triton", reason="triton: not installed")
import triton.language as tl  # noqa: E402

from tests.ptxsim import MemoryFault  # noqa: E402


@triton.jit
def add_kernel(
    x_ptr, y_ptr, size, step, MASKED: tl.constexpr, READS: tl.constexpr, BLOCK: tl.constexpr
):
    at = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    inside = at < (size if MASKED else 1 << 20)
    total = tl.load(x_ptr + at, mask=inside, other=0.0) + step
    if READS:
        total += tl.load(y_ptr + at, mask=inside, other=0.0)
    tl.store(y_ptr + at, total, mask=inside)


def launch(x, masked=True, reads=False):
    y = torch.empty_like(x)
    grid = (triton.cdiv(x.numel(), 128),)
    add_kernel[grid](
        x, y, x.numel(), 0.5, MASKED=masked, READS=reads, BLOCK=128, enable_fp_fusion=True
    )
    return y


def test_the_triton_that_was_asked_for_runs():
    expected = os.environ.get("EVOPRUNE_EXPECT")  # set by `make triton`
    if expected is None:
        pytest.skip("EVOPRUNE_EXPECT is not set: an ordinary run")
    assert Path(triton.__file__).is_relative_to(expected)


@pytest.mark.parametrize("size", [1, 100, 256, 300])
def test_a_right_kernel_runs(simulated, size):
    x = torch.randn(size + 1)[1:]
    assert torch.equal(simulated.apply(launch, x), x + 0.5)
    assert [name for name, _ in simulated.launches] == ["add_kernel"]


def test_a_missing_mask_is_out_of_bounds(simulated):
    with pytest.raises(MemoryFault, match="out-of-bounds"):
        simulated.apply(launch, torch.randn(100), masked=False)


def test_reading_what_nothing_wrote_is_a_fault(simulated):
    with pytest.raises(MemoryFault, match="uninitialised"):
        simulated.apply(launch, torch.randn(256), reads=True)
