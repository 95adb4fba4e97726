"""The fixtures of the Triton tests: a launcher in the interpreter, on the simulator, or with a GPU on that."""

from __future__ import annotations

import os

import pytest
import torch

from evoprune_kernels import _ext
from evoprune_kernels.ops import OPS
from tests.cuda.device import DeviceGpu

ON_GPU = os.environ.get("EVOPRUNE_GPU") == "1"


def runners():
    """The module of the runners; a machine without Triton skips here, by name."""
    pytest.importorskip("triton", reason="triton: not installed")
    from tests.triton import runner

    return runner


class TritonDevice(DeviceGpu):
    """The launchers on a GPU: ``evoprune_triton::<op>``."""

    def function(self, op):
        return OPS[op].triton[0]


@pytest.fixture(scope="session")
def simulated():
    """The PTX simulator, for counts and for what ptxas says."""
    return runners().Simulated()


@pytest.fixture(scope="session")
def interpreter():
    runner = runners().Interpreter()
    yield runner
    runner.close()


@pytest.fixture(params=["gpu"] if ON_GPU else ["interpreter", "simulated"])
def run(request):
    """``run(op, *args)`` calls the launcher of an op, once each way."""
    if request.param == "gpu":
        assert torch.cuda.is_available(), "EVOPRUNE_GPU=1, but torch finds no GPU"
        assert "triton" not in _ext.reasons, f"triton: {_ext.reasons['triton']}"
        return TritonDevice().call
    return request.getfixturevalue(request.param).call


@pytest.fixture
def no_spills(simulated):
    """``no_spills(op, *args)``: every kernel of a launcher, on every architecture, spills nothing."""

    def check(op, *args, **kwargs):
        found = simulated.compile(op, *args, **kwargs)
        assert found, "nothing was launched"
        for figures in found:
            print(figures)
            assert figures.spills == 0, figures
        return found

    return check
