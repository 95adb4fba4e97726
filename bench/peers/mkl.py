"""MKL's inspector-executor sparse products, called in the library itself: with hints, and after its analysis.

    create the handle -> set_mv_hint / set_mm_hint(calls) -> optimize -> mv / mm

Activations are feature-major [K, M], MKL's fast path; the transposes that a model would need are not counted. MKL runs
sequentially here: its own OpenMP runtime beside torch's in one process would disturb both, so with more than one thread
this peer is absent and the record says so.
"""

from __future__ import annotations

import ctypes
import functools
import importlib.metadata
import os
from collections.abc import Callable
from ctypes import byref, c_float, c_int, c_void_p

import torch
from torch import Tensor

from bench.peers.adapter import (
    Adapter,
    Job,
    Stack,
    bsr_parts,
    csr_parts,
    feature_major,
    square_edge,
)

#: numbers of mkl_spblas.h and mkl_service.h
NON_TRANSPOSE, GENERAL, NON_UNIT, FULL = 10, 20, 50, 42
ROW_MAJOR, ZERO_BASED, SEQUENTIAL, LP64 = 101, 0, 1, 0
EXPECTED_CALLS = 10_000


class Description(ctypes.Structure):
    """``struct matrix_descr``."""

    _fields_ = [("type", c_int), ("mode", c_int), ("diag", c_int)]


DESCRIPTION = Description(GENERAL, FULL, NON_UNIT)


@functools.cache
def library() -> ctypes.CDLL | str:
    """``libmkl_rt`` of the pip package ``mkl``, sequential, or why it cannot be had."""
    try:
        files = importlib.metadata.files("mkl") or []
    except importlib.metadata.PackageNotFoundError:
        return "not installed (no package mkl); pip install 'evoprune_kernels[peers]'"
    found = [str(file.locate()) for file in files if file.name.startswith("libmkl_rt.so")]
    if not found:
        return "the package mkl holds no libmkl_rt.so"
    # torch exports the MKL that it is built with: this one must find its own functions first
    mode = os.RTLD_NOW | os.RTLD_LOCAL | getattr(os, "RTLD_DEEPBIND", 0)
    try:
        loaded = ctypes.CDLL(found[0], mode=mode)
    except OSError as error:
        return f"libmkl_rt did not load: {error}"
    if loaded.MKL_Set_Threading_Layer(SEQUENTIAL) != SEQUENTIAL:
        return "MKL did not accept its sequential layer"
    loaded.MKL_Set_Interface_Layer(LP64)
    return loaded


def missing(threads: int) -> str | None:
    """Why MKL cannot run, or None."""
    if threads != 1:
        return "one thread only: its OpenMP runtime would meet torch's in one process"
    found = library()
    return found if isinstance(found, str) else None


def address(tensor: Tensor, elements: int = 0) -> c_void_p:
    """The address of an element of ``tensor``."""
    return c_void_p(tensor.data_ptr() + elements * tensor.element_size())


def check(status: int, what: str) -> None:
    """Raise ``RuntimeError`` unless MKL reports success."""
    if status != 0:
        raise RuntimeError(f"MKL: {what} returned {status}, expected 0")


class Handle:
    """One optimised sparse weight [N, K] and its output; ``product()`` writes ``y`` [N, M]."""

    def __init__(
        self,
        create: Callable[..., int],
        parts: tuple[Tensor, Tensor, Tensor],
        x_t: Tensor,
        rows: int,
    ) -> None:
        self.mkl = library()
        self.parts = tuple(part.clone() for part in parts)
        self.x_t, self.tokens = x_t, x_t.shape[1]
        self.y = torch.empty(rows, self.tokens)
        self.handle = c_void_p()
        pointers, columns, values = self.parts
        arrays = address(pointers), address(pointers, 1), address(columns), address(values)
        check(create(byref(self.handle), *arrays), "create")
        if self.tokens == 1:
            hint = self.mkl.mkl_sparse_set_mv_hint(
                self.handle, NON_TRANSPOSE, DESCRIPTION, EXPECTED_CALLS
            )
        else:
            hint = self.mkl.mkl_sparse_set_mm_hint(
                self.handle, NON_TRANSPOSE, DESCRIPTION, ROW_MAJOR, self.tokens, EXPECTED_CALLS
            )
        check(hint, "hint")
        check(self.mkl.mkl_sparse_optimize(self.handle), "optimize")

    def product(self) -> Tensor:
        one, zero, tokens = c_float(1), c_float(0), self.tokens
        x, y = address(self.x_t), address(self.y)
        if tokens == 1:
            status = self.mkl.mkl_sparse_s_mv(
                NON_TRANSPOSE, one, self.handle, DESCRIPTION, x, zero, y
            )
        else:
            status = self.mkl.mkl_sparse_s_mm(
                NON_TRANSPOSE, one, self.handle, DESCRIPTION, ROW_MAJOR, x, tokens, tokens, zero, y, tokens
            )  # fmt: skip
        check(status, "product")
        return self.y.t()

    def close(self) -> None:
        self.mkl.mkl_sparse_destroy(self.handle)


def stack_of(handles: list[Handle]) -> Stack:
    """A stack of handles, freed together."""

    def run() -> None:
        for handle in handles:
            handle.product()

    def close() -> None:
        for handle in handles:
            handle.close()

    return Stack(run, handles[0].product, close)


def build_csr(job: Job) -> Stack:
    """``mkl_sparse_s_create_csr``."""
    rows, columns = job.layers[0].shape
    parts, x_t = csr_parts(job.layers[0]), feature_major(job.x)

    def create(handle: object, *arrays: c_void_p) -> int:
        return library().mkl_sparse_s_create_csr(handle, ZERO_BASED, rows, columns, *arrays)

    return stack_of([Handle(create, parts, x_t, rows) for _ in job.layers])


def build_bsr(job: Job) -> Stack | None:
    """``mkl_sparse_s_create_bsr``, where blocks are square."""
    edge = square_edge(job)
    if edge is None:
        return None
    rows, columns = job.layers[0].shape
    parts, x_t = bsr_parts(job.layers[0], edge), feature_major(job.x)
    numbers = ZERO_BASED, ROW_MAJOR, rows // edge, columns // edge, edge

    def create(handle: object, *arrays: c_void_p) -> int:
        return library().mkl_sparse_s_create_bsr(handle, *numbers, *arrays)

    return stack_of([Handle(create, parts, x_t, rows) for _ in job.layers])


CSR = Adapter("MKL CSR", "sparse", build_csr, missing, package="mkl")
BSR = Adapter("MKL BSR", "sparse", build_bsr, missing, package="mkl")
