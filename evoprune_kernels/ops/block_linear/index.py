"""The indices of a block mask that the backward products read, built once for each mask and kept with its ``col_idx``.

An entry lives as long as the tensor ``col_idx`` of the weight, and is built anew where ``row_ptr`` or ``col_idx`` is
another tensor or was written to. A new mask is packed into new tensors, so it has an entry of its own.

Nothing is kept where a tensor is not a plain one (``torch.compile`` traces with others: its graph builds the index in
every backward), nor while a CUDA graph is captured (the graph builds it in every replay, so that it follows masks
written into the captured tensors). On CUDA an entry is for one stream: what another stream built is not read.
"""

from __future__ import annotations

import weakref
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor
from torch.utils.weak import WeakTensorKeyDictionary

from evoprune_kernels.formats.block import rows_of
from evoprune_kernels.ops.block_linear.backward import transpose_index


@dataclass
class _Entry:
    row_ptr: weakref.ref[Tensor]
    state: tuple[int, ...]  # of the tensors when the entry was made
    built: dict[Any, Any] = field(default_factory=dict)


_ENTRIES: WeakTensorKeyDictionary = WeakTensorKeyDictionary()


def transposed(
    row_ptr: Tensor, col_idx: Tensor, block_columns: int
) -> tuple[Tensor, Tensor, Tensor]:
    """``transpose_index``, kept."""
    found: tuple[Tensor, Tensor, Tensor] = _kept(
        row_ptr, col_idx, block_columns, lambda: transpose_index(row_ptr, col_idx, block_columns)
    )
    return found


def block_rows(row_ptr: Tensor, col_idx: Tensor) -> Tensor:
    """int32 [nnz]: the block row of every block, kept."""
    found: Tensor = _kept(
        row_ptr, col_idx, "rows", lambda: rows_of(row_ptr, col_idx.shape[0]).to(torch.int32)
    )
    return found


def _kept(row_ptr: Tensor, col_idx: Tensor, key: Any, build: Callable[[], Any]) -> Any:
    if not _can_be_kept(row_ptr, col_idx):
        return build()
    stream = 0
    if col_idx.is_cuda:
        stream = torch.cuda.current_stream(col_idx.device).cuda_stream
    state = (row_ptr._version, col_idx._version, stream)
    entry = _ENTRIES.get(col_idx)
    if entry is None or entry.row_ptr() is not row_ptr or entry.state != state:
        entry = _ENTRIES[col_idx] = _Entry(weakref.ref(row_ptr), state)
    if key not in entry.built:
        entry.built[key] = build()
    return entry.built[key]


def _can_be_kept(row_ptr: Tensor, col_idx: Tensor) -> bool:
    if type(row_ptr) is not Tensor or type(col_idx) is not Tensor:
        return False
    if torch.compiler.is_compiling() or col_idx.is_inference() or row_ptr.is_inference():
        return False
    return not (col_idx.is_cuda and torch.cuda.is_current_stream_capturing())
