"""The sparse formats that torch itself has on the CPU: CSR and BSR, both by the MKL that torch is built with."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from bench.peers.adapter import (
    Adapter,
    Job,
    Stack,
    bsr_parts,
    csr_parts,
    each,
    feature_major,
    square_edge,
)


def stack_of(job: Job, parts: tuple[Tensor, Tensor, Tensor], make: Callable[..., Tensor]) -> Stack:
    """The same sparse weight once for each layer, times feature-major activations; the result is [N, M]."""
    x_t = feature_major(job.x)
    shape = job.layers[0].shape
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch calls its sparse formats a prototype
        weights = [
            make(*(part.clone() for part in parts), size=shape, check_invariants=False)
            for _ in job.layers
        ]

    def call(weight: Tensor) -> Callable[[], Any]:
        return lambda: (weight @ x_t).t()

    return each([call(weight) for weight in weights])


def build_csr(job: Job) -> Stack:
    """``torch.sparse_csr_tensor(...) @ x^T``."""
    return stack_of(job, csr_parts(job.layers[0]), torch.sparse_csr_tensor)


def build_bsr(job: Job) -> Stack | None:
    """``torch.sparse_bsr_tensor(...) @ x^T``, where blocks are square."""
    edge = square_edge(job)
    if edge is None:
        return None
    return stack_of(job, bsr_parts(job.layers[0], edge), torch.sparse_bsr_tensor)


CSR = Adapter("torch CSR", "sparse", build_csr)
BSR = Adapter("torch BSR", "sparse", build_bsr)
