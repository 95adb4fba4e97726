"""What the tests of the optimizer steps on CUDA share: problems, their layouts, and what the memory traffic may be."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from tests.ops.steps import SHAPES, Problem

#: sizes around vectors of four, a warp, a block's turn and a chunk
SIZES = [*SHAPES, (130,), (4095,), (4096,), (4101,)]
#: (parameters, state)
DTYPES = {
    "fp32": (torch.float32, None),
    "bf16-fp32": (torch.bfloat16, torch.float32),
    "bf16": (torch.bfloat16, None),
}
LISTS = ("params", "grads", "first", "second", "largest", "importances", "masks")
each_dtype = pytest.mark.parametrize("dtype, state", DTYPES.values(), ids=DTYPES)


def problem(shapes=SIZES, dtype=torch.float32, state=None, seed=0) -> Problem:
    """A problem with gradients."""
    p = Problem.make(shapes, dtype, state, seed)
    p.draw_gradients(seed)
    return p


def flat(tensors: list[Tensor]) -> Tensor:
    return torch.cat([t.detach().reshape(-1) for t in tensors])


def unaligned(p: Problem) -> Problem:
    """The same values, each tensor one element into memory of its own."""
    twin = p.copy()
    for name in LISTS:
        moved = []
        for t in getattr(p, name):
            view = torch.zeros(t.numel() + 1, dtype=t.dtype)[1:].view(t.shape)
            moved.append(view.copy_(t))
        setattr(twin, name, moved)
    return twin


def with_gaps(p: Problem) -> tuple[Problem, list[Tensor]]:
    """The same values in every other column of wider memory, and that memory: 7 between the columns."""
    twin, around = p.copy(), []
    for name in ("params", "grads", "first", "importances"):
        views = []
        for t in getattr(p, name):
            memory = torch.full((t.shape[0], 2 * t.shape[1] + 1), 7, dtype=t.dtype)
            views.append(memory[:, 1::2].copy_(t))
            around.append(memory)
        setattr(twin, name, views)
    return twin, around


def repeated(p: Problem) -> Problem:
    """Every tensor twice in its list."""
    twin = p.copy()
    for name in (*LISTS, "steps"):
        setattr(twin, name, getattr(twin, name) * 2)
    return twin


def footprint(gpu) -> int:
    """Bytes that memory must move for all launches of the last call, if the caches are perfect."""
    return gpu.stats["global.load.footprint"] + gpu.stats["global.store.footprint"]
