"""``Problem``: one call of an op that the static counts are of."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch

F32, F16, BF16 = torch.float32, torch.float16, torch.bfloat16
Arguments = Callable[[], tuple[Any, ...]]


@dataclass(frozen=True)
class Problem:
    """One call of an op: positional arguments from ``make``, the others in ``options``.

    Bytes and instructions are divided by ``items`` of ``unit``. ``longer`` makes the same call with more to sum up (a
    larger K): the difference gives the counts of the inner loop, and what lies before and after it. ``processors``: of
    the simulated device, where the choice of a tile depends on it and the tile of large problems is wanted.
    """

    name: str
    op: str
    make: Arguments
    items: int
    unit: str = "element"
    options: Mapping[str, Any] = field(default_factory=dict)
    longer: Arguments | None = None
    processors: int | None = None
