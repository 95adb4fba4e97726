"""What the tests of the optimizer-step ops share: problems, snapshots, and one step written out in plain arithmetic."""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

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

    def double_for_ops(self) -> Problem:
        """The same in fp64 as the ops take it: steps are fp32."""
        twin = self.double()
        twin.steps = [s.clone() for s in self.steps]
        return twin

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


def alike(a: list[Tensor], b: list[Tensor]) -> bool:
    """Equality but for what a compiler may fuse, of a multiplication and an addition."""
    return all(torch.allclose(x, y, rtol=1e-5, equal_nan=True) for x, y in zip(a, b, strict=True))


#: what the ops take as ``rule``
RULES = ("none", "magnitude", "evolution", "evolution_abs", "taylor", "movement")
#: rules with a state, and where they look by default
POINT_OF = {"evolution": "post", "evolution_abs": "post", "taylor": "pre", "movement": "pre"}
#: what they average
VALUES: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "evolution": lambda w, g: w.clone(),
    "evolution_abs": lambda w, g: w.abs(),
    "taylor": lambda w, g: (w * g).abs(),
    "movement": lambda w, g: -(w * g),
}


def weights_seen(
    step: Callable[..., None], before: Problem, after: Problem, rule: str, point: str
) -> list[Tensor]:
    """The weights that an importance looks at: with "post" and a product, those of a step without masks."""
    if point == "pre":
        return before.params
    if rule.startswith("evolution"):
        return after.params
    dense = before.copy()
    dense.masks, dense.importances = [], []
    step(dense)
    return dense.params


def assert_the_point(step: Callable[..., None], p: Problem, rule: str, point: str) -> None:
    """With alpha 1 the importance is the value of one weight, to the bit; ``step(problem, **options)``."""
    before = p.copy()
    step(p, rule=rule, alpha=1.0, point=point)
    weights = weights_seen(step, before, p, rule, point)
    expected = [VALUES[rule](w.float(), g.float()) for w, g in zip(weights, p.grads, strict=True)]
    assert same_bits(p.importances, expected)


#: learning rates with which no importance moves, and the smallest with which it does
ZERO_RATES = {
    "number": 0.0, "negative": -0.0, "tensor": torch.tensor(0.0), "double": torch.zeros(1, dtype=torch.float64),
    "bfloat16": torch.tensor(-0.0, dtype=torch.bfloat16),
}  # fmt: skip
TINY_RATES = {"number": 5e-324, "tensor": torch.tensor(5e-324, dtype=torch.float64)}


def assert_no_importance_moves(
    step: Callable[..., None], p: Problem, same: Callable[..., bool] = same_bits, **options: Any
) -> None:
    """All else is the ``same`` as after a step without a rule, whatever the values; ``step(problem, **options)``."""
    for i, importance in enumerate(p.importances):
        importance.view(-1)[::2] = (-0.0, 3.0, torch.nan)[i % 3]
        p.grads[i].view(-1)[::3] = (torch.nan, torch.inf)[i % 2]
    plain = p.copy()
    step(p, **options)
    step(plain, **{**options, "rule": "none"})
    assert same_bits(p.importances, plain.importances)
    assert same(p.written(), plain.written())


def decayed(problem: Problem, i: int, g: Tensor, sparse_decay: float) -> Tensor:
    """The oracle's gradient for the moments, in fp64."""
    if sparse_decay == 0:
        return g
    return g + sparse_decay * problem.params[i] * (~problem.masks[i]).double()


def update_importance_and_mask(
    problem: Problem, i: int, old: Tensor, g: Tensor, rule: str, alpha: float, point: str = "",
    sparse_decay: float = 0.0,
) -> None:  # fmt: skip
    """The last part of the oracle's step, in fp64."""
    new = problem.params[i]
    if problem.masks and sparse_decay == 0:
        problem.params[i] = torch.where(problem.masks[i], new, 0.0)
    post = (point or POINT_OF.get(rule)) == "post"
    w, seen = new if post else old, problem.params[i] if post else old
    value = {
        "evolution": seen, "evolution_abs": seen.abs(), "taylor": (w * g).abs(), "movement": -w * g,
    }.get(rule)  # fmt: skip
    if value is not None:
        problem.importances[i] = (1 - alpha) * problem.importances[i] + alpha * value
