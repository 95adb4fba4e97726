"""The pointer table of a Triton optimizer step: a whole list of tensors in one launch.

::

    row of a tensor   param grad first second largest importance mask step | numel | first chunk | index in the call
    last row          the numbers of the step as doubles: lr, beta1, beta2, weight decay, 0 .. | seed

    chunks    | 0 | 1 | 2 | | 3 | | 4 | 5 |     CHUNK elements each; a program finds its tensor by bisection

int64 [count + 1, FIELDS]; the address of an absent tensor is 0. Tensors of one table agree in their dtypes.
"""

from __future__ import annotations

import contextlib
import struct
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from evoprune_kernels.ops._step import KERNEL_DTYPES

CHUNK = 1024
FIELDS = 11
#: what the kernels index a row by
POINTERS = ("param", "grad", "first", "second", "largest", "importance", "mask", "step")

Lists = tuple[Sequence[Tensor], ...]


@dataclass(frozen=True)
class Table:
    """Tensors that one launch steps: the table on the device, and what all of them have in common."""

    rows: Tensor
    count: int
    chunks: int
    param_dtype: torch.dtype
    state_dtype: torch.dtype
    aligned: bool
    seeded: bool


def tables(lists: Lists, numbers: Sequence[float], seed: int | None) -> list[Table]:
    """One table for every combination of dtypes and alignment; ``lists`` in the order of ``POINTERS``."""
    params, firsts = lists[0], lists[2]
    groups: dict[tuple[torch.dtype, torch.dtype, bool], list[int]] = {}
    addresses = [[t.data_ptr() for t in tensors] or [0] * len(params) for tensors in lists]
    for i, param in enumerate(params):
        if param.numel():
            state = firsts[i].dtype if firsts else param.dtype
            aligned = not any(column[i] % 16 for column in addresses[:-1])
            groups.setdefault((param.dtype, state, aligned), []).append(i)
    padding = [0.0] * (FIELDS - 1 - len(numbers))
    bits = struct.pack(f"{FIELDS - 1}dq", *numbers, *padding, seed or 0)
    last = list(struct.unpack(f"{FIELDS}q", bits))
    found = []
    for (dtype, state, aligned), members in groups.items():
        rows, chunks = [], 0
        for i in members:
            rows.append([*(column[i] for column in addresses), params[i].numel(), chunks, i])
            chunks += -(-params[i].numel() // CHUNK)
        table = torch.tensor([*rows, last], dtype=torch.int64).to(params[0].device)
        seeded = seed is not None and dtype == torch.bfloat16
        found.append(Table(table, len(rows), chunks, dtype, state, aligned, seeded))
    return found


@contextlib.contextmanager
def row_by_row(lists: Lists, seed: int | None) -> Iterator[Lists]:
    """The lists with contiguous tensors where a seed counts the elements row by row; others are copied, and back."""
    if seed is None or all(t.is_contiguous() for t in lists[0] if t.dtype == torch.bfloat16):
        yield lists
        return
    rows = tuple([t.contiguous() for t in tensors] for tensors in lists)
    yield rows
    for copies, originals in zip(rows, lists, strict=True):
        for copied, original in zip(copies, originals, strict=True):
            if copied is not original:
                original.copy_(copied)


def use_of_masks(lists: Lists, sparse_decay: float) -> str:
    """What a mask does that is False: "zero" the weight, or let it "decay"; "none" where there are no masks."""
    if not lists[6]:
        return "none"
    return "decay" if sparse_decay else "zero"


def advance_empty(lists: Lists, found_inf: Tensor | None) -> None:
    """Count the step of every parameter without elements: no chunk is theirs."""
    for param, step in zip(lists[0], lists[-1], strict=True):
        if param.numel() == 0:
            step.add_(
                1 if found_inf is None else (found_inf == 0).to(step.dtype).reshape(step.shape)
            )


def _strides(tensor: Tensor) -> list[tuple[int, int]]:
    """``(stride, size)`` of every dimension of more than one element."""
    return [(s, n) for s, n in zip(tensor.stride(), tensor.shape, strict=True) if n > 1]


def _dense(tensor: Tensor) -> bool:
    """Whether the elements fill one span of memory, each once."""
    expected = 1
    for stride, size in sorted(_strides(tensor)):
        if stride != expected:
            return False
        expected *= size
    return True


def unfit(lists: Lists, numbers: Sequence[Tensor | float | None]) -> str | None:
    """Why the kernels cannot step these tensors, or None; ``numbers``: one-element tensors, if they are tensors."""
    params, grads, *states, importances, masks, steps = lists
    for i, param in enumerate(params):
        if param.dtype not in KERNEL_DTYPES:
            return f"takes parameters of float32 or bfloat16, got {param.dtype}"
        moments = [tensors[i] for tensors in states if tensors]
        for tensor, allowed in (
            *((t, (param.dtype,)) for t in (grads[i],)),
            *((t, (torch.float32, param.dtype)) for t in moments),
            *((t[i], (torch.float32,)) for t in (importances,) if t),
            *((t[i], (torch.bool,)) for t in (masks,) if t),
        ):
            if tensor.dtype not in allowed:
                return f"takes tensors of {allowed} with a parameter of {param.dtype}, got {tensor.dtype}"
            if tensor.shape != param.shape or _strides(tensor) != _strides(param):
                return f"takes tensors that share shape and strides, got {tuple(tensor.shape)} and {tuple(param.shape)}"
            if tensor.device != param.device:
                return f"takes tensors of one device, got {tensor.device} and {param.device}"
        if len({t.dtype for t in moments}) > 1:
            return "takes moments of one dtype"
        if not _dense(param):
            return f"takes dense parameters, got strides {param.stride()}"
        if steps[i].dtype != torch.float32 or steps[i].numel() != 1:
            return f"takes steps of one float32, got {steps[i].numel()} of {steps[i].dtype}"
        if steps[i].device != param.device:
            return f"takes steps on {param.device}, got {steps[i].device}"
    for number in numbers:
        if isinstance(number, Tensor) and params and number.device != params[0].device:
            return f"takes numbers on {params[0].device}, got {number.device}"
    return None
