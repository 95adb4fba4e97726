"""The sparse formats that torch itself has on the CPU, as contenders: CSR and BSR."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class Peer:
    """A sparse ``weight`` [N, K] and feature-major activations ``x_t`` [K, M]; ``call`` gives [N, M]."""

    name: str
    weight: Tensor
    x_t: Tensor
    copy: Callable[[Tensor], Tensor]

    def call(self) -> Tensor:
        """The product that is timed."""
        return self.weight @ self.x_t

    def rows(self) -> Tensor:
        """The product as rows of tokens [M, N], to be compared."""
        return self.call().t()

    def clone(self) -> Peer:
        """The same weight at another place in memory."""
        return Peer(self.name, self.copy(self.weight), self.x_t, self.copy)


def torch_csr(weight: Tensor, x: Tensor) -> Peer:
    """``torch.sparse_csr``: MKL's sparse product."""

    def copy(old: Tensor) -> Tensor:
        parts = (old.crow_indices().clone(), old.col_indices().clone(), old.values().clone())
        return torch.sparse_csr_tensor(*parts, size=old.shape, check_invariants=False)

    return Peer("torch CSR", weight.to_sparse_csr(), x.t().contiguous(), copy)


def torch_bsr(weight: Tensor, x: Tensor, rows: int, columns: int) -> Peer | None:
    """``torch.sparse_bsr``, or None where the blocks are not square or do not divide the weight."""
    if rows != columns or weight.shape[0] % rows or weight.shape[1] % columns:
        return None

    def copy(old: Tensor) -> Tensor:
        parts = (old.crow_indices().clone(), old.col_indices().clone(), old.values().clone())
        return torch.sparse_bsr_tensor(*parts, size=old.shape, check_invariants=False)

    return Peer("torch BSR", weight.to_sparse_bsr((rows, columns)), x.t().contiguous(), copy)
