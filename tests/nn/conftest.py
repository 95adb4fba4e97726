"""Where an op has no native kernel, the layers' logic is tested on its reference."""

from __future__ import annotations

import pytest

from evoprune_kernels import _select
from evoprune_kernels.ops import OPS


@pytest.fixture(autouse=True)
def _kernels(monkeypatch):
    names = [op.name for op in OPS.values() if op.name.endswith("_linear") and op.reasons()]
    monkeypatch.setattr(_select, "FORCED", dict.fromkeys(names, _select.REFERENCE))
