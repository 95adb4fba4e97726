"""Where an op has no native kernel, the layers' logic is tested on its reference."""

from __future__ import annotations

import pytest

from tests.nn.layers import use_references


@pytest.fixture(autouse=True)
def _kernels(monkeypatch):
    use_references(monkeypatch)
