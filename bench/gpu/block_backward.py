"""The backward products of block-sparse layers on the GPU, against dense cuBLAS, unpacking, and torch's BSR."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn.functional import linear

from bench.gpu.compare import OURS, REFERENCE, Call, Contender, Problem, close, forced
from evoprune_kernels import ops
from evoprune_kernels.formats import BlockWeight
from evoprune_kernels.formats.block import blocks_of, rows_of
from evoprune_kernels.ops.block_linear.backward import DW, DX, transpose_index
from evoprune_kernels.ops.block_linear.reference import dense_weight

SHAPES = ((4096, 4096), (11008, 4096))
TOKENS = (512, 2048, 8192)
EDGES = (32, 64, 128)
DENSITIES = (0.5, 0.25, 0.1)
DTYPE = torch.bfloat16
DENSE = "dense cuBLAS"
INDEXED = "ours, index rebuilt"


def problems(device: str, quick: bool) -> list[Problem]:
    """dX and dW for every shape, number of tokens, edge and density."""
    if quick:
        return [make(device, (64, 128), 8, 32, 0.5) for make in (dx, dw)]
    return [
        make(device, shape, tokens, edge, density)
        for shape in SHAPES
        for tokens in TOKENS
        for edge in EDGES
        for density in DENSITIES
        for make in (dx, dw)
    ]


def _weight(
    shape: tuple[int, int], edge: int, density: float, generator: torch.Generator
) -> tuple[Tensor, BlockWeight]:
    weight = torch.randn(shape, generator=generator).to(DTYPE)
    mask = ops.select_block(torch.rand(shape, generator=generator), edge, edge, density)
    return weight * mask, BlockWeight.pack(weight, edge, edge, mask=mask)


def dx(device: str, shape: tuple[int, int], tokens: int, edge: int, density: float) -> Problem:
    """``dX = dY W``. ``ours`` has the index of the transposed blocks; rebuilding it has a line of its own."""
    numbers, columns = (*shape, edge, edge), -(-shape[1] // edge)

    def make(generator: torch.Generator) -> tuple[Tensor, ...]:
        weight, packed = _weight(shape, edge, density, generator)
        grad = torch.randn(tokens, shape[0], generator=generator).to(DTYPE)
        return grad, weight, packed.values, packed.row_ptr, packed.col_idx

    def dense(grad: Tensor, weight: Tensor, *_: Tensor) -> Call:
        return lambda: grad @ weight

    def unpacked(grad: Tensor, _: Tensor, *packed: Tensor) -> Call:
        return lambda: grad @ dense_weight(*packed, shape, (edge, edge), "canonical")

    def ours(grad: Tensor, _: Tensor, values: Tensor, *index: Tensor) -> Call:
        transposed = transpose_index(*index, columns)
        return lambda: DX(grad, values, *transposed, *numbers, impl=forced(device))

    def indexed(grad: Tensor, _: Tensor, values: Tensor, *index: Tensor) -> Call:
        return lambda: DX(
            grad, values, *transpose_index(*index, columns), *numbers, impl=forced(device)
        )

    def bsr(grad: Tensor, weight: Tensor, *_: Tensor) -> Call:
        transposed = weight.t().contiguous().to_sparse_bsr((edge, edge))
        return lambda: linear(grad, transposed)

    right = close(lambda grad, weight, *_: grad.double() @ weight.double(), DTYPE)
    binds: dict[str, Callable[..., Call]] = {
        DENSE: dense, REFERENCE: unpacked, OURS: ours, INDEXED: indexed, "torch BSR": bsr,
    }  # fmt: skip
    contenders = {name: Contender(bind, right) for name, bind in binds.items()}
    return Problem(
        "block_linear_dx", _size(shape, tokens, edge, density), make, contenders,
        _moved(shape, tokens, density), DENSE,
    )  # fmt: skip


def dw(device: str, shape: tuple[int, int], tokens: int, edge: int, density: float) -> Problem:
    """``dW = dY^T x`` on the kept blocks; cuBLAS computes all of them."""

    def make(generator: torch.Generator) -> tuple[Tensor, ...]:
        _, packed = _weight(shape, edge, density, generator)
        grad = torch.randn(tokens, shape[0], generator=generator).to(DTYPE)
        x = torch.randn(tokens, shape[1], generator=generator).to(DTYPE)
        rows = rows_of(packed.row_ptr, packed.col_idx.shape[0]).int()
        return grad, x, rows, packed.col_idx

    def dense(grad: Tensor, x: Tensor, *_: Tensor) -> Call:
        return lambda: grad.t() @ x

    def bound(impl: str | None) -> Callable[..., Call]:
        return lambda *tensors: lambda: DW(*tensors, edge, edge, impl=impl)

    def product(grad: Tensor, x: Tensor) -> Tensor:
        return grad.double().t() @ x.double()

    def kept(grad: Tensor, x: Tensor, rows: Tensor, columns: Tensor) -> Tensor:
        return blocks_of(product(grad, x), edge, edge)[rows.long(), columns.long()]

    contenders = {
        DENSE: Contender(dense, close(lambda grad, x, *_: product(grad, x), DTYPE)),
        REFERENCE: Contender(bound(REFERENCE), close(kept, DTYPE)),
        OURS: Contender(bound(forced(device)), close(kept, DTYPE)),
    }
    return Problem(
        "block_linear_dw", _size(shape, tokens, edge, density), make, contenders,
        _moved(shape, tokens, density), DENSE,
    )  # fmt: skip


def _size(shape: tuple[int, int], tokens: int, edge: int, density: float) -> str:
    return f"{shape[0]}x{shape[1]} @ {tokens} block:{edge}x{edge} {1 - density:.0%}"


def _moved(shape: tuple[int, int], tokens: int, density: float) -> int:
    """Bytes of both activations and of the kept blocks."""
    return int(DTYPE.itemsize * (tokens * sum(shape) + density * shape[0] * shape[1]))
