"""Fixtures for every test: fixed seeds, NaN in every uninitialised buffer, and the ISA levels of this machine."""

from __future__ import annotations

import pytest
import torch

from evoprune_kernels import _ext


@pytest.fixture(autouse=True)
def _reproducible():
    """Seeded; ``torch.empty`` is filled with NaN, so a kernel that skips an output is caught."""
    torch.manual_seed(0)
    before = torch.are_deterministic_algorithms_enabled()
    torch.use_deterministic_algorithms(True, warn_only=True)
    torch.utils.deterministic.fill_uninitialized_memory = True
    yield
    torch.use_deterministic_algorithms(before)


@pytest.fixture(params=["avx512", "avx2", "baseline"])
def isa(request):
    """Runs the test at each ISA level; a level that this machine lacks is skipped by name."""
    if request.param not in _ext.isa_levels():
        pytest.skip(f"ISA level {request.param} does not run here")
    level = _ext.isa_level()
    _ext.set_isa_level(request.param)
    yield request.param
    _ext.set_isa_level(level)


@pytest.fixture(params=[1, 2])
def threads(request):
    """Runs the test with one and with two threads."""
    before = torch.get_num_threads()
    torch.set_num_threads(request.param)
    yield request.param
    torch.set_num_threads(before)
