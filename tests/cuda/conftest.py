"""One simulated GPU for the tests of the CUDA kernels; skipped, with the reason, where it cannot be built."""

from __future__ import annotations

import pytest

from tests import simulated


@pytest.fixture(scope="session")
def gpu():
    """Calls ``evoprune_sim`` ops; see ``tests.simulated.Gpu``."""
    if reason := simulated.reason():
        pytest.skip(f"simulated CUDA: {reason}")
    return simulated.Gpu()
