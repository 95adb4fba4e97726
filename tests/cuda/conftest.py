"""The GPU of the tests of the CUDA kernels: simulated, or with ``EVOPRUNE_GPU=1`` the one at hand."""

from __future__ import annotations

import os

import pytest
import torch

from evoprune_kernels import _ext
from tests import simulated
from tests.cuda.device import DeviceGpu


@pytest.fixture(scope="session")
def gpu():
    """Calls the CUDA ops on CPU tensors; see ``tests.simulated.Gpu`` and ``tests.cuda.device.DeviceGpu``."""
    if os.environ.get("EVOPRUNE_GPU") == "1":
        assert torch.cuda.is_available(), "EVOPRUNE_GPU=1, but torch finds no GPU"
        assert "_cuda" not in _ext.reasons, f"_cuda.so: {_ext.reasons['_cuda']}"
        return DeviceGpu()
    if reason := simulated.reason():
        pytest.skip(f"simulated CUDA: {reason}")
    return simulated.Gpu()
