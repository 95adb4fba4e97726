"""What the tests of the optimizer-step ops share: problems, snapshots, and one step written out in plain arithmetic."""

from __future__ import annotations

import copy
from dataclasses import dataclass, field

import torch
from torch import Tensor

#: sizes around every vector width and the prefetch step, 0-dim and empty included
SHAPES = [(), (0,), (1,), (7,), (8,), (9,), (15,), (16,), (17,), (31,), (33,), (65,), (3, 41)]


@dataclass
class Problem:
    """Parameters with everything that an optimizer step may touch; lists may be emptied to turn a feature off."""

    params: list[Tensor]
    first: list[Tensor]
    second: list[Tensor]
    largest: list[Tensor]
    importances: list[Tensor]
    masks: list[Tensor]
    steps: list[Tensor]
    grads: list[Tensor] = field(default_factory=list)

    @staticmethod
    def make(shapes=SHAPES, dtype=torch.float32, state=None, seed=0) -> Problem:
        generator = torch.Generator().manual_seed(seed)
        params = [torch.randn(s, generator=generator).to(dtype) for s in shapes]

        def zeros(of):
            return [torch.zeros(s, dtype=of) for s in shapes]

        return Problem(
            params=params, first=zeros(state or dtype), second=zeros(state or dtype),
            largest=zeros(state or dtype), importances=zeros(torch.float32),
            masks=[torch.rand(s, generator=generator) < 0.5 for s in shapes],
            steps=[torch.tensor(0.0) for _ in shapes],
        )  # fmt: skip

    def draw_gradients(self, seed: int, scale: float = 1.0) -> list[Tensor]:
        generator = torch.Generator().manual_seed(1000 + seed)
        self.grads = [
            (torch.randn(p.shape, generator=generator) * scale).to(p.dtype) for p in self.params
        ]
        return self.grads

    def double(self) -> Problem:
        """The same problem in fp64, masks as they are."""

        def wide(tensors):
            return [t.to(torch.float64, copy=True) for t in tensors]

        return Problem(
            wide(self.params), wide(self.first), wide(self.second), wide(self.largest),
            wide(self.importances), self.masks, wide(self.steps), wide(self.grads),
        )  # fmt: skip

    def copy(self) -> Problem:
        return copy.deepcopy(self)

    def written(self) -> list[Tensor]:
        lists = (self.params, self.first, self.second, self.largest, self.importances, self.steps)
        return [t for tensors in lists for t in tensors] + self.grads


def same_bits(a: list[Tensor], b: list[Tensor]) -> bool:
    """Bitwise equality of two lists: NaN equals NaN, -0.0 differs from 0.0."""
    kinds = {torch.float32: torch.int32, torch.bfloat16: torch.int16, torch.float64: torch.int64}
    return all(
        torch.equal(x.detach().contiguous().view(kinds[x.dtype]), y.detach().contiguous().view(kinds[y.dtype]))
        for x, y in zip(a, b, strict=True)
    )  # fmt: skip


def update_importance_and_mask(
    problem: Problem, i: int, old: Tensor, g: Tensor, rule: str, alpha: float
) -> None:
    """The last part of the oracle's step, in fp64."""
    if problem.masks:
        problem.params[i] = torch.where(problem.masks[i], problem.params[i], 0.0)
    value = {"evolution": problem.params[i], "taylor": (old * g).abs()}.get(rule)
    if value is not None:
        problem.importances[i] = (1 - alpha) * problem.importances[i] + alpha * value
