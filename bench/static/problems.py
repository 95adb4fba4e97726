"""The problems that every kernel is counted on: named calls of ops, small enough for the simulator.

To add a kernel: one entry in ``PROBLEMS``, and its blocks in ``bench/budgets.toml``.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from bench.static.linear_problems import linear_problems
from bench.static.problem import BF16, F16, F32, Arguments, Problem

# ---- optimizer steps: every list but the amsgrad one, the importance rule "evolution" ----
ADAMW = {
    "lr": 0.01, "beta1": 0.9, "beta2": 0.999, "eps": 1e-8, "weight_decay": 0.1, "amsgrad": False,
    "maximize": False, "rule": "evolution", "alpha": 0.5,
}  # fmt: skip
SGD = {
    "lr": 0.01, "momentum": 0.9, "dampening": 0.0, "weight_decay": 0.1, "nesterov": False,
    "maximize": False, "rule": "evolution", "alpha": 0.5,
}  # fmt: skip


def step(
    moments: int, tensors: int, size: int, dtype: torch.dtype, state: torch.dtype
) -> Arguments:
    """Lists of an optimizer step with one moment (SGD) or two (AdamW)."""

    def lists() -> tuple[Any, ...]:
        def each(make: Callable[[], Tensor]) -> list[Tensor]:
            return [make() for _ in range(tensors)]

        weights, grads = (each(lambda: torch.randn(size).to(dtype)) for _ in range(2))
        states = [each(lambda: torch.zeros(size, dtype=state)) for _ in range(moments)]
        largest: list[list[Tensor]] = [[]] if moments == 2 else []
        importances = each(lambda: torch.zeros(size))
        masks = each(lambda: torch.rand(size) < 0.5)
        # after the first step of SGD, which does not read its buffer
        return (
            weights,
            grads,
            *states,
            *largest,
            importances,
            masks,
            each(lambda: torch.tensor(5.0)),
        )

    return lists


def step_problems() -> list[Problem]:
    """AdamW and SGD for each pair of dtypes."""
    found = []
    for op, moments, options in (("adamw_step", 2, ADAMW), ("sgd_step", 1, SGD)):
        for dtype, state, name in (
            (F32, F32, "f32"), (BF16, F32, "bf16, state f32"), (BF16, BF16, "bf16"),
        ):  # fmt: skip
            make = step(moments, 3, 20_480, dtype, state)
            title = f"{op} 3x20480 {name}, evolution, mask"
            found.append(Problem(title, f"{op}_", make, 3 * 20_480, "parameter", options))
    return found


# ---- selections ----
def scores(*shape: int, dtype: torch.dtype = F32) -> Callable[[], Tensor]:
    """Distinct scores, of both signs."""
    return lambda: torch.randn(shape).to(dtype)


def select_problems() -> list[Problem]:
    """Every selection on 64 x 1024 scores."""
    found = []
    size = 64 * 1024
    for dtype, name in ((F32, "f32"), (BF16, "bf16")):
        of = scores(64, 1024, dtype=dtype)
        for n, m in ((2, 4), (4, 8), (8, 32)):
            make = lambda of=of, n=n, m=m: (of(), n, m)  # noqa: E731
            found.append(Problem(f"select_nm 64x1024 {n}:{m} {name}", "select_nm", make, size))
        odd = scores(64, 1001, dtype=dtype)
        found += [
            Problem(f"select_nm 64x1001 2:4 {name}", "select_nm", lambda odd=odd: (odd(), 2, 4), 64 * 1001),
            Problem(f"select_nm_transposable 64x1024 {name}", "select_nm_transposable", lambda of=of: (of(),), size),
            Problem(f"select_topk 64x1024 {name}", "select_topk", lambda of=of: (of(), 0.5), size),
            Problem(f"select_block 64x1024 16x16 {name}", "select_block", lambda of=of: (of(), 16, 16, 0.5), size),
        ]  # fmt: skip
    return found


# ---- channels: no gate is closed ----
def gate_problem(
    *shape: int, op: str = "channel_gate", dtype: torch.dtype = F16, last: bool = False
) -> Problem:
    """``channel_gate`` or its backward."""

    def activation() -> Tensor:
        x = torch.randn(shape).to(dtype)
        return x.contiguous(memory_format=torch.channels_last) if last else x

    def make() -> tuple[Any, ...]:
        activations = [activation() for _ in range(1 + op.endswith("backward"))]
        return (*activations, torch.rand(shape[1]) + 0.5)

    name = f"{op} {'x'.join(map(str, shape))} f16" + " channels_last" * last
    return Problem(name, op, make, math.prod(shape))


BACKWARD = "channel_gate_backward"
PROBLEMS = [
    *step_problems(),
    *select_problems(),
    *linear_problems(),
    gate_problem(16, 64, 7, 7),
    gate_problem(16, 64, 7, 7, last=True),
    gate_problem(64, 64, 7, 7, op=BACKWARD),
    gate_problem(2, 16, 56, 56, op=BACKWARD),
    gate_problem(16, 64, 7, 7, op=BACKWARD, last=True),
    gate_problem(16, 35, 7, 7, op=BACKWARD, last=True),
    Problem("topk_channels 4096 of 8192 f32", "topk_channels", lambda: (torch.randn(8192), 4096), 8192),
]  # fmt: skip
