"""The shape that every peer is given, so that the benchmark knows none of them by name."""

from __future__ import annotations

import importlib
import importlib.metadata
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from evoprune_kernels import formats

#: from wide to narrow: a contender is compared with peers of its own and of wider precisions
PRECISIONS = ("fp32", "bf16", "int8")


@dataclass(frozen=True)
class Job:
    """What to multiply: ``layers[i]`` [N, K] by ``x`` [M, K]. Layers differ in place, not in zeros or shape."""

    layers: list[Tensor]
    x: Tensor
    pattern: formats.Pattern | None = None
    threads: int = 1


@dataclass
class Stack:
    """A contender that is ready: ``run()`` goes over all layers once, ``rows()`` is the first one's result [M, N]."""

    run: Callable[[], object]
    rows: Callable[[], Tensor]
    close: Callable[[], None] = field(default=lambda: None)
    nbytes: int = 0  # of one layer's tensors, where somebody asks
    error: float = 0.0  # relative, against fp64


@dataclass(frozen=True)
class Adapter:
    """One peer.

    Args:
        name: as in records and tables.
        weight: ``dense`` or ``sparse``: which weight it is given.
        build: makes its stack of a job, or None where it cannot hold the pattern.
        missing: threads -> why it cannot run on this machine, or None.
        precision: of its arithmetic, one of ``PRECISIONS``.
        package: whose version the record names.
        error: largest allowed error in units of the largest true value; None: the tolerance law.
    """

    name: str
    weight: str
    build: Callable[[Job], Stack | None]
    missing: Callable[[int], str | None] = lambda threads: None
    precision: str = "fp32"
    package: str = "torch"
    error: float | None = None

    def presence(self, threads: int) -> str:
        """``present (package version)``, or why it is absent."""
        reason = self.missing(threads)
        return reason or f"present ({self.package} {importlib.metadata.version(self.package)})"


def needs(*modules: str) -> Callable[[int], str | None]:
    """A ``missing`` that asks for Python modules."""

    def missing(threads: int) -> str | None:
        for name in modules:
            try:
                importlib.import_module(name)
            except ImportError as error:
                return f"not installed ({error}); pip install 'evoprune_kernels[peers]'"
        return None

    return missing


def each(calls: list[Callable[[], Any]]) -> Stack:
    """A stack of callables, one a layer, that return rows of tokens."""

    def run() -> None:
        for call in calls:
            call()

    return Stack(run, calls[0])


def feature_major(x: Tensor) -> Tensor:
    """[M, K] -> [K, M] in memory: what the sparse libraries like; the transpose is not counted against them."""
    return x.t().contiguous()


def csr_parts(weight: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """``(row pointers, columns, values)`` of the non-zeros, indices int32 as MKL takes them."""
    row, column = weight.nonzero(as_tuple=True)
    pointers = torch.zeros(weight.shape[0] + 1, dtype=torch.int32)
    pointers[1:] = torch.bincount(row, minlength=weight.shape[0]).cumsum(0)
    return pointers, column.int(), weight[row, column]


def bsr_parts(weight: Tensor, edge: int) -> tuple[Tensor, Tensor, Tensor]:
    """The same of square blocks that hold a non-zero; values [blocks, edge, edge]."""
    rows, columns = weight.shape[0] // edge, weight.shape[1] // edge
    blocks = weight.view(rows, edge, columns, edge).transpose(1, 2)
    kept = blocks.ne(0).any(-1).any(-1)
    pointers, column, _ = csr_parts(kept.float())
    return pointers, column, blocks[kept].contiguous()


def square_edge(job: Job) -> int | None:
    """The edge of the job's blocks where they are square and divide the weight, else None."""
    pattern = job.pattern
    if not isinstance(pattern, formats.Block) or pattern.rows != pattern.columns:
        return None
    rows, columns = job.layers[0].shape
    return (
        None if pattern.rows == 1 or rows % pattern.rows or columns % pattern.rows else pattern.rows
    )
