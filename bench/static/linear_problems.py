"""The problems of the sparse linear layers and of what packs their weights."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from bench.static.problem import BF16, F16, F32, Arguments, Problem
from evoprune_kernels import ops
from evoprune_kernels.formats import BitmaskWeight, BlockWeight, NMWeight
from evoprune_kernels.formats.block import rows_of
from evoprune_kernels.ops.block_linear.backward import transpose_index

INT8 = torch.int8
NAMES = {F32: "f32", F16: "f16", BF16: "bf16", INT8: "int8"}


def mask_of(weight: Tensor, n: int, m: int) -> Tensor:
    """The n largest of m consecutive weights."""
    return ops.select_nm(weight.abs(), n, m)


def stored(packed: Any, dtype: torch.dtype) -> Any:
    """A packed weight as int8 with a scale, or as it is."""
    return packed.quantize() if dtype == INT8 else packed


def of_values(dtype: torch.dtype) -> torch.dtype:
    """What is packed before ``stored``."""
    return F32 if dtype == INT8 else dtype


# ---- 2:4 ----
def weight_2_of_4(rows: int, columns: int, dtype: torch.dtype) -> NMWeight:
    """Random numbers, every group full."""
    weight = torch.randn(rows, columns).to(of_values(dtype))
    return stored(NMWeight.pack(weight, 2, 4, mask=mask_of(weight, 2, 4)), dtype)


def nm_linear(
    tokens: int, rows: int, columns: int, dtype: torch.dtype, x: torch.dtype
) -> Arguments:
    """Arguments of ``nm_linear`` in the layout of the CUDA kernels."""

    def make() -> tuple[Any, ...]:
        packed = weight_2_of_4(rows, columns, dtype)
        numbers = (rows, columns, *packed.pattern.arguments(), "none", "cuda", packed.scale)
        return (torch.randn(tokens, columns).to(x), *ops.nm_prepare_cuda(packed), None, *numbers)

    return make


def nm_w8a8_linear(tokens: int, rows: int, columns: int) -> Arguments:
    """Arguments of ``nm_w8a8_linear``."""

    def make() -> tuple[Any, ...]:
        packed = weight_2_of_4(rows, columns, INT8)
        x = torch.randn(tokens, columns).half()
        return (x, *ops.nm_prepare_cuda(packed), None, rows, columns, "none", packed.scale)

    return make


def nm_problems() -> list[Problem]:
    """Every tile of the tensor-core kernels, on one processor so that it is chosen; few tokens; int8."""
    found = []
    for tokens, rows, columns in ((128, 128, 256), (64, 128, 256), (32, 64, 512)):
        for dtype in (F16, BF16):
            name = f"nm_linear {tokens} tokens {rows}x{columns} {NAMES[dtype]}"
            make = nm_linear(tokens, rows, columns, dtype, dtype)
            longer = nm_linear(tokens, rows, 2 * columns, dtype, dtype)
            found.append(
                Problem(name, "nm_linear", make, rows * columns, "weight", {}, longer, processors=1)
            )
    split = nm_linear(32, 64, 2048, F16, F16)
    found.append(
        Problem("nm_linear 32 tokens 64x2048 f16, split", "nm_linear", split, 64 * 2048, "weight")
    )
    for tokens in (1, 16):
        for dtype, x in ((F16, F16), (F32, F32), (INT8, F16)):
            name = f"nm_linear {tokens} tokens 256x1024 {NAMES[dtype]}, x {NAMES[x]}"
            make = nm_linear(tokens, 256, 1024, dtype, x)
            found.append(Problem(name, "nm_linear", make, 256 * 1024, "weight"))
    found.append(
        Problem(
            "nm_w8a8_linear 128 tokens 128x256", "nm_w8a8_linear", nm_w8a8_linear(128, 128, 256),
            128 * 256, "weight", {}, nm_w8a8_linear(128, 128, 768), processors=1,
        )
    )  # fmt: skip
    return found


def pack_problems() -> list[Problem]:
    """Packing and unpacking: 2:4, and a pattern that the general kernels take."""
    size = 128 * 1024

    def matrix(n: int, m: int) -> Callable[[], tuple[Tensor, Tensor]]:
        def make() -> tuple[Tensor, Tensor]:
            weight = torch.randn(128, 1024).half()
            return weight, mask_of(weight, n, m)

        return make

    def packed(weight: Tensor, mask: Tensor, n: int, m: int) -> tuple[Tensor, Tensor]:
        weight_nm = NMWeight.pack(weight, n, m, mask=mask)
        return weight_nm.values, weight_nm.meta

    found = []
    for n, m in ((2, 4), (4, 8)):
        of = matrix(n, m)

        def pack(of: Any = of, n: int = n, m: int = m) -> tuple[Any, ...]:
            return (*of(), n, m)

        def unpack(of: Any = of, n: int = n, m: int = m) -> tuple[Any, ...]:
            return (*packed(*of(), n, m), n, m, 1024)

        def select_pack(of: Any = of, n: int = n, m: int = m) -> tuple[Any, ...]:
            weight = of()[0]
            return weight, weight.abs(), n, m

        found += [
            Problem(f"nm_pack 128x1024 {n}:{m} f16", "nm_pack", pack, size, "weight"),
            Problem(f"nm_unpack 128x1024 {n}:{m} f16", "nm_unpack", unpack, size, "weight"),
            Problem(f"nm_select_pack 128x1024 {n}:{m} f16", "nm_select_pack", select_pack, size, "weight"),
        ]  # fmt: skip

    def prepare() -> tuple[Any, ...]:
        return (*packed(*matrix(2, 4)(), 2, 4), 2, 4, 1, 1024)

    found.append(
        Problem("nm_prepare_cuda 128x1024 f16", "nm_prepare_cuda", prepare, size, "weight")
    )
    return found


# ---- blocks and bitmasks ----
def block_problems() -> list[Problem]:
    """Forward and both backward products for square blocks, all of them kept; dW of one block, many tokens."""
    tokens, rows = 128, 128

    def parts(columns: int, edge: int, dtype: torch.dtype) -> tuple[BlockWeight, Tensor, Tensor]:
        packed = BlockWeight.pack(torch.randn(rows, columns).to(dtype), edge, edge)
        return packed, torch.randn(tokens, columns).to(dtype), torch.randn(tokens, rows).to(dtype)

    def forward(columns: int, edge: int, dtype: torch.dtype) -> tuple[Any, ...]:
        packed, x, _ = parts(columns, edge, dtype)
        numbers = (rows, columns, edge, edge, "none", "canonical", None)
        return (x, packed.values, packed.row_ptr, packed.col_idx, None, *numbers)

    def dx(columns: int, edge: int, dtype: torch.dtype) -> tuple[Any, ...]:
        packed, _, grad = parts(columns, edge, dtype)
        index = transpose_index(packed.row_ptr, packed.col_idx, columns // edge)
        return (grad, packed.values, *index, rows, columns, edge, edge)

    def dw(columns: int, edge: int, dtype: torch.dtype) -> tuple[Any, ...]:
        packed, x, grad = parts(columns, edge, dtype)
        index = rows_of(packed.row_ptr, packed.values.shape[0]).int()
        return (grad, x, index, packed.col_idx, edge, edge)

    found = []
    for op, call in (("block_linear", forward), ("block_linear_dx", dx), ("block_linear_dw", dw)):
        for dtype in (F16, F32):
            for edge in (16, 32, 64, 128):
                make, longer = (
                    lambda call=call, columns=columns, edge=edge, dtype=dtype: call(columns, edge, dtype)
                    for columns in (128, 256)
                )  # fmt: skip
                name = f"{op} 128 tokens 128x128 {edge}x{edge} {NAMES[dtype]}"
                inner = longer if op == "block_linear" else None  # K grows; of dx and dw the output
                found.append(Problem(name, op, make, rows * 128, "weight", {}, inner))

    def one_block() -> tuple[Any, ...]:
        first = torch.zeros(1, dtype=torch.int32)
        return (*(torch.randn(1536, 64).half() for _ in range(2)), first, first, 64, 64)

    name = "block_linear_dw 1536 tokens 64x64 64x64 f16, split"
    found.append(Problem(name, "block_linear_dw", one_block, 64 * 64, "weight"))
    return found


def bitmask_problems() -> list[Problem]:
    """30 % of 64 rows, one token, eight (of 16 bits) and sixteen; and 10 %, one token."""

    def make(tokens: int, percent: int, dtype: torch.dtype, x: torch.dtype) -> tuple[Any, ...]:
        mask = torch.rand(64, 2048) < percent / 100
        packed = stored(
            BitmaskWeight.pack(torch.randn(64, 2048).to(of_values(dtype)), mask=mask), dtype
        )
        tensors = (packed.values, packed.bits, packed.row_ptr)
        return (
            torch.randn(tokens, 2048).to(x),
            *tensors,
            None,
            64,
            2048,
            "none",
            "canonical",
            packed.scale,
        )

    return [
        Problem(
            f"bitmask_linear {tokens} tokens 64x2048 {percent} % {NAMES[dtype]}, x {NAMES[x]}", "bitmask_linear",
            lambda tokens=tokens, percent=percent, dtype=dtype, x=x: make(tokens, percent, dtype, x), 64 * 2048,
            "weight",
        )
        for tokens, percent, dtype, x in (
            *((tokens, 30, *types) for tokens in (1, 16) for types in ((F16, F16), (F32, F32), (INT8, F16))),
            *((8, 30, *types) for types in ((F16, F16), (INT8, F16))),
            (1, 10, F16, F16),
        )
    ]  # fmt: skip


def linear_problems() -> list[Problem]:
    """All of this file."""
    return [*nm_problems(), *block_problems(), *bitmask_problems(), *pack_problems()]
