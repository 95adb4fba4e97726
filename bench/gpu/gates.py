"""Channel gates on the GPU, forward and backward, against the reference and the products that people write."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from bench.gpu.compare import OURS, REFERENCE, Call, Contender, Problem, close, forced
from evoprune_kernels.ops._channels import spread
from evoprune_kernels.ops._op import OPS

SHAPES = ((64, 256, 56, 56), (64, 2048, 7, 7), (8192, 4096))
DTYPES = (torch.bfloat16, torch.float32)
CLOSED = 0.5
FORMATS = {"contiguous": torch.contiguous_format, "channels_last": torch.channels_last}


def problems(device: str, quick: bool) -> list[Problem]:
    """Both directions, for every shape, dtype and memory format; half of the gates are closed."""
    shapes = ((4, 16, 8, 8), (32, 64)) if quick else SHAPES
    dtypes = DTYPES[:1] if quick else DTYPES
    return [
        make(device, shape, dtype, name)
        for shape in shapes
        for dtype in dtypes
        for name in (FORMATS if len(shape) == 4 else ("contiguous",))
        for make in (forward, backward)
    ]


def forward(device: str, shape: tuple[int, ...], dtype: torch.dtype, name: str) -> Problem:
    """``y = x * g``: half of x is read, all of y written."""

    def make(generator: torch.Generator) -> tuple[Tensor, Tensor]:
        return _activation(shape, dtype, name, generator), _gates(shape, generator)

    right = close(lambda x, gates: x.double() * spread(gates.double(), x), dtype)
    contenders = {
        **_ours("channel_gate", right, device),
        "torch product": Contender(lambda x, g: lambda: x * spread(g, x).to(x.dtype), right),
    }
    count = torch.Size(shape).numel()
    moved = int(count * dtype.itemsize * (2 - CLOSED))
    return Problem("channel_gate", _size(shape, dtype, name), make, contenders, moved)


def backward(device: str, shape: tuple[int, ...], dtype: torch.dtype, name: str) -> Problem:
    """``dx = dy * g`` and ``dgates``, the sums of ``dy * x``: all of both is read, all of dx written."""

    def make(generator: torch.Generator) -> tuple[Tensor, Tensor, Tensor]:
        grad, x = (_activation(shape, dtype, name, generator) for _ in range(2))
        return grad, x, _gates(shape, generator)

    right = close(lambda *tensors: composed(*(t.double() for t in tensors)), dtype)
    contenders = {
        **_ours("channel_gate_backward", right, device),
        "torch products": Contender(lambda *tensors: lambda: composed(*tensors), right),
    }
    moved = 3 * torch.Size(shape).numel() * dtype.itemsize
    return Problem("channel_gate_backward", _size(shape, dtype, name), make, contenders, moved)


def composed(grad: Tensor, x: Tensor, gates: Tensor) -> tuple[Tensor, Tensor]:
    """Both gradients as autograd computes them for ``x * gates``."""
    dims = [d for d in range(x.dim()) if d != 1]
    return grad * spread(gates, x).to(x.dtype), (grad * x).sum(dims).to(gates.dtype)


def _ours(name: str, right: Callable[..., str | None], device: str) -> dict[str, Contender]:
    op = OPS[name]

    def bound(impl: str | None) -> Callable[..., Call]:
        return lambda *tensors: lambda: op(*tensors, impl=impl)

    return {
        REFERENCE: Contender(bound(REFERENCE), right),
        OURS: Contender(bound(forced(device)), right),
    }


def _activation(
    shape: tuple[int, ...], dtype: torch.dtype, name: str, generator: torch.Generator
) -> Tensor:
    x: Any = torch.randn(shape, generator=generator).to(dtype)
    result: Tensor = x.contiguous(memory_format=FORMATS[name])
    return result


def _gates(shape: tuple[int, ...], generator: torch.Generator) -> Tensor:
    gates = torch.rand(shape[1], generator=generator) + 0.5
    closed = torch.randperm(shape[1], generator=generator)[: int(CLOSED * shape[1])]
    gates[closed] = 0.0
    return gates


def _size(shape: tuple[int, ...], dtype: torch.dtype, name: str) -> str:
    return f"{'x'.join(map(str, shape))} {name} {str(dtype)[6:]}, {CLOSED:.0%} closed"
