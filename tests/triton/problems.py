"""The calls that the budgets of the Triton kernels are of: named, small enough for the simulator.

To add a kernel: one entry here, and its line in ``bench/budgets.toml``.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from bench.static.problem import BF16, F16, F32, Problem
from bench.static.problems import ADAMW, SGD, step
from evoprune_kernels.formats import BitmaskWeight, BlockWeight, NMWeight
from evoprune_kernels.formats.block import rows_of
from evoprune_kernels.ops.block_linear.backward import transpose_index
from evoprune_kernels.ops.nm_pack.reference import nm_pack_reference
from tests.triton.linear import arguments

NAMES = {F32: "f32", F16: "f16", BF16: "bf16"}


def nm_mask(rows: int, columns: int, n: int, m: int) -> Tensor:
    return (torch.arange(columns) % m < n).expand(rows, columns)


def nm_problem(tokens: int, dtype: torch.dtype) -> Problem:
    def make() -> tuple[Any, ...]:
        mask, weight = nm_mask(32, 256, 2, 4), torch.randn(32, 256).to(dtype)
        packed = NMWeight.pack(weight, 2, 4, mask=mask)
        return arguments(torch.randn(tokens, 256).to(dtype), packed, torch.randn(32), "gelu")

    return Problem(f"nm_linear 2:4 {tokens} {NAMES[dtype]}", "nm_linear", make, 32 * 256)


def bitmask_problem(tokens: int, dtype: torch.dtype) -> Problem:
    def make() -> tuple[Any, ...]:
        packed = BitmaskWeight.pack(torch.randn(32, 256).to(dtype), mask=torch.rand(32, 256) < 0.5)
        return arguments(torch.randn(tokens, 256).to(dtype), packed, torch.randn(32), "gelu")

    return Problem(f"bitmask_linear {tokens} {NAMES[dtype]}", "bitmask_linear", make, 32 * 256)


def every_second_block(edge: int, dtype: torch.dtype) -> BlockWeight:
    """[2 edge, 2 edge], the blocks of the diagonal."""
    mask = torch.eye(2).bool().repeat_interleave(edge, 0).repeat_interleave(edge, 1)
    return BlockWeight.pack(torch.randn(2 * edge, 2 * edge).to(dtype), edge, edge, mask=mask)


def block_problems(edge: int, tokens: int, dtype: torch.dtype) -> list[Problem]:
    """The three products."""
    name, items = f"{edge} {tokens} {NAMES[dtype]}", 2 * edge * edge

    def forward() -> tuple[Any, ...]:
        packed = every_second_block(edge, dtype)
        x = torch.randn(tokens, 2 * edge).to(dtype)
        return arguments(x, packed, torch.randn(2 * edge), "gelu")

    def dx() -> tuple[Any, ...]:
        packed = every_second_block(edge, dtype)
        index = transpose_index(packed.row_ptr, packed.col_idx, 2)
        grad = torch.randn(tokens, 2 * edge).to(dtype)
        return grad, packed.values, *index, 2 * edge, 2 * edge, edge, edge

    def dw() -> tuple[Any, ...]:
        packed = every_second_block(edge, dtype)
        grad, x = (torch.randn(tokens, 2 * edge).to(dtype) for _ in range(2))
        return grad, x, rows_of(packed.row_ptr, 2).int(), packed.col_idx, edge, edge

    return [
        Problem(f"block_linear {name}", "block_linear", forward, items),
        Problem(f"block_linear_dx {name}", "block_linear_dx", dx, items),
        Problem(f"block_linear_dw {name}", "block_linear_dw", dw, items),
    ]


def pack_problems() -> list[Problem]:
    """To and from the packed formats."""

    def nm(n: int, m: int, columns: int) -> list[Problem]:
        def packed() -> tuple[Any, ...]:
            weight, mask = torch.randn(16, columns), nm_mask(16, columns, n, m)
            return *nm_pack_reference(weight, mask, n, m), n, m, columns

        def dense() -> tuple[Any, ...]:
            return torch.randn(16, columns), nm_mask(16, columns, n, m).contiguous(), n, m

        name, items = f"{n}:{m} f32", 16 * columns
        return [
            Problem(f"nm_pack {name}", "nm_pack", dense, items),
            Problem(f"nm_unpack {name}", "nm_unpack", packed, items),
        ]

    def bitmask() -> tuple[Any, ...]:
        return torch.randn(4, 1024), torch.rand(4, 1024) < 0.5

    def bits() -> tuple[Any, ...]:
        packed = BitmaskWeight.pack(bitmask()[0], mask=bitmask()[1])
        return packed.values, packed.bits, packed.row_ptr, 1024

    return [
        *nm(2, 4, 256), *nm(3, 5, 80), *nm(7, 32, 96),
        Problem("bitmask_pack f32", "bitmask_pack", bitmask, 4096),
        Problem("bitmask_unpack f32", "bitmask_unpack", bits, 4096),
    ]  # fmt: skip


def select_problems() -> list[Problem]:
    found = [
        Problem(f"select_nm 64x{c} {n}:{m} f32", "select_nm", lambda n=n, m=m, c=c: (torch.randn(64, c), n, m), 64 * c)
        for n, m, c in ((2, 4, 256), (2, 4, 61), (4, 32, 256), (3, 5, 60))
    ]  # fmt: skip
    for dtype in (F32, BF16):
        name = NAMES[dtype]
        of = lambda *shape, dtype=dtype: torch.randn(shape).to(dtype)  # noqa: E731
        found += [
            Problem(f"select_topk {name}", "select_topk", lambda of=of: (of(2 * 4096), 0.5), 2 * 4096),
            Problem(f"select_block 16x16 {name}", "select_block", lambda of=of: (of(16, 1024), 16, 16, 0.5), 16 * 1024),
            Problem(f"topk_channels {name}", "topk_channels", lambda of=of: (of(2, 512), 256), 1024),
        ]  # fmt: skip
    return found


def gate_problem(*shape: int, dtype: torch.dtype, last: bool, backward: bool) -> Problem:
    op = "channel_gate" + "_backward" * backward
    order = torch.channels_last if last else torch.contiguous_format

    def make() -> tuple[Any, ...]:
        x = [
            torch.randn(shape).to(dtype).contiguous(memory_format=order)
            for _ in range(1 + backward)
        ]
        return *x, torch.rand(shape[1]) + 0.5

    size = "x".join(map(str, shape))
    name = f"{op} {size} {NAMES[dtype]}" + " channels_last" * last
    return Problem(name, op, make, math.prod(shape))


def norm_problems(*shape: int, dtype: torch.dtype, last: bool) -> list[Problem]:
    """In training: with statistics of the batch, ReLU and gradients of the gates."""
    order = torch.channels_last if last else torch.contiguous_format

    def forward() -> tuple[Any, ...]:
        x = torch.randn(shape).to(dtype).contiguous(memory_format=order)
        return x, torch.rand(shape[1]) + 0.5, *torch.randn(2, shape[1]), None, None, 1e-5, True

    def backward() -> tuple[Any, ...]:
        x, gates, weight, bias, *_ = forward()
        statistics = torch.zeros(shape[1]), torch.ones(shape[1])
        return forward()[0], x, gates, weight, bias, *statistics, True, 1e-5, True, True

    name = "x".join(map(str, shape)) + f" {NAMES[dtype]}" + " channels_last" * last
    return [
        Problem(f"gate_norm {name}", "gate_norm", forward, math.prod(shape)),
        Problem(f"gate_norm_backward {name}", "gate_norm_backward", backward, math.prod(shape)),
    ]


def topk_abs_problem(*shape: int, dtype: torch.dtype, last: bool) -> Problem:
    order = torch.channels_last if last else torch.contiguous_format

    def make() -> tuple[Any, ...]:
        return torch.randn(shape).to(dtype).contiguous(memory_format=order), shape[1] // 2

    name = f"topk_abs_channels {'x'.join(map(str, shape))} {NAMES[dtype]}"
    return Problem(name + " channels_last" * last, "topk_abs_channels", make, math.prod(shape))


def move_problems(*shape: int, dtype: torch.dtype, last: bool) -> list[Problem]:
    """Half of the channels out of an activation and back, in ascending order."""
    channels, order = shape[1], torch.channels_last if last else torch.contiguous_format

    def moved(channels: int) -> Tensor:
        x = torch.randn(shape[0], channels, *shape[2:]).to(dtype)
        return x.contiguous(memory_format=order)

    def index() -> Tensor:
        return torch.randperm(channels)[: channels // 2].sort().values

    name = "x".join(map(str, shape)) + f" {NAMES[dtype]}" + " channels_last" * last
    size = math.prod(shape)

    def gather() -> tuple[Any, ...]:
        return moved(channels), index()

    def scatter() -> tuple[Any, ...]:
        return moved(channels // 2), index(), channels

    return [
        Problem(f"gather_channels {name}", "gather_channels", gather, size // 2),
        Problem(f"scatter_channels {name}", "scatter_channels", scatter, size),
    ]


def step_problems() -> list[Problem]:
    """The optimizer steps, which write their weights: compiled only."""
    ops = ("adamw_step_", 2, ADAMW), ("sgd_step_", 1, SGD)
    return [
        Problem(f"{op} {name}", op, step(moments, 2, 2048, dtype, state), 4096, options={**options, "seed": seed})
        for op, moments, options in ops
        for dtype, state, seed, name in (
            (F32, F32, None, "f32"), (BF16, F32, None, "bf16"), (BF16, BF16, 3, "bf16, state bf16, seed"),
        )
    ]  # fmt: skip


PROBLEMS = [
    *select_problems(),
    *pack_problems(),
    *[nm_problem(tokens, dtype) for tokens in (1, 8, 33) for dtype in (F32, BF16)],
    *[bitmask_problem(tokens, dtype) for tokens in (1, 8, 33) for dtype in (F32, BF16)],
    *block_problems(16, 32, F32),
    *block_problems(16, 32, BF16),
    *block_problems(64, 64, F32),
    *block_problems(64, 64, BF16),
    *block_problems(128, 128, BF16),
    *[
        gate_problem(4, 64, 8, 8, dtype=F16, last=last, backward=backward)
        for last in (False, True)
        for backward in (False, True)
    ],
    gate_problem(4, 20, 7, 7, dtype=F32, last=False, backward=True),
    *move_problems(4, 64, 8, 8, dtype=F16, last=False),
    *move_problems(4, 64, 8, 8, dtype=F16, last=True),
    *move_problems(4, 20, 7, 7, dtype=F32, last=False),
    topk_abs_problem(4, 64, 8, 8, dtype=F16, last=False),
    topk_abs_problem(4, 64, 8, 8, dtype=F16, last=True),
    topk_abs_problem(4, 20, 7, 7, dtype=F32, last=False),
    *norm_problems(4, 64, 8, 8, dtype=F16, last=False),
    *norm_problems(4, 64, 8, 8, dtype=F16, last=True),
    *norm_problems(4, 20, 7, 7, dtype=F32, last=False),
    *step_problems(),
]
