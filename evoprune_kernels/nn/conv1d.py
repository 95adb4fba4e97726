"""``SparseConv1D``: what ``SparseLinear`` is to ``nn.Linear``, for the ``Conv1D`` of transformers (GPT-2).

``Conv1D`` is a linear layer whose weight is stored transposed, [in_features, out_features]. The Parameter stays as it
is, so that checkpoints fit; the pattern runs along the input features of each output, as in a linear layer::

    weight  [K, N]  ->  dense_weight() = weight.t()  [N, K]  ->  mask, packing
"""

from __future__ import annotations

from typing import Any, Self

import torch
from torch import Tensor, nn

from evoprune_kernels.formats import Pattern
from evoprune_kernels.nn.linear import SparseForward
from evoprune_kernels.nn.packed import adopt


def is_conv1d(module: nn.Module) -> bool:
    """Whether ``module`` is transformers' ``Conv1D``; told by its class name and fields, nothing is imported."""
    weight = module._parameters.get("weight")
    if type(module).__name__ != "Conv1D" or weight is None or weight.dim() != 2:
        return False
    return (
        hasattr(module, "nf")
        and hasattr(module, "nx")
        and set(module._parameters) <= {"weight", "bias"}
    )


class SparseConv1D(SparseForward):
    """A pruned ``Conv1D``: ``y = x W + b`` with W [in_features, out_features]; see ``SparseLinear``.

    Example:
        >>> import torch
        >>> from evoprune_kernels.nn.conv1d import SparseConv1D
        >>> class Conv1D(torch.nn.Module):  # as in transformers
        ...     def __init__(self, nf, nx):
        ...         super().__init__()
        ...         self.nf, self.nx = nf, nx
        ...         self.weight = torch.nn.Parameter(torch.randn(nx, nf))
        ...         self.bias = torch.nn.Parameter(torch.zeros(nf))
        >>> layer = SparseConv1D.from_conv1d(Conv1D(6, 8), "2:4")
        >>> (layer.weight.t().reshape(6, 2, 4) != 0).sum(-1).unique()
        tensor([2])
    """

    nf: int
    nx: int
    _dense_class: type[nn.Module]

    @classmethod
    def from_conv1d(
        cls,
        conv: nn.Module,
        pattern: str | Pattern = "2:4",
        mask: Tensor | None = None,
        *,
        sparsity: float | None = None,
        stored: str | None = None,
        name: str | None = None,
    ) -> SparseConv1D:
        """A sparse layer with the same Parameter objects; ``mask`` has the shape of the weight, [in, out]."""
        layer = cls.share(conv, pattern, sparsity=sparsity, stored=stored, name=name)
        layer._prune(None if mask is None else mask.t(), sparsity)
        return layer

    @classmethod
    def share(cls, dense: nn.Module, pattern: str | Pattern, **options: Any) -> Self:
        """As ``SparseLinear.share``, without an activation."""
        layer = super().share(dense, pattern, **options)
        layer._dense_class = type(dense)
        return layer

    @classmethod
    def _expect(cls, dense: nn.Module) -> None:
        if not is_conv1d(dense):
            raise TypeError(f"expected transformers' Conv1D, got {type(dense).__name__}")

    def _as_stored(self, keep: Tensor) -> Tensor:
        return keep.t()

    @property
    def in_features(self) -> int:  # type: ignore[override]
        """Size of the input."""
        return self.nx

    @property
    def out_features(self) -> int:  # type: ignore[override]
        """Size of the output."""
        return self.nf

    def dense_weight(self) -> Tensor:
        """The weight as [out_features, in_features]."""
        return self.weight.t()

    def to_dense(self) -> nn.Module:
        """The plain ``Conv1D`` with the same Parameters."""
        conv = self._dense_class.__new__(self._dense_class)
        adopt(conv, self)
        conv.__dict__.pop("_dense_class", None)
        return conv

    def _dense_linear(self, input: Tensor) -> Tensor:
        flat = input.reshape(-1, self.nx)
        bias = self._parameters["bias"]
        output = flat @ self.weight if bias is None else torch.addmm(bias, flat, self.weight)
        return output.view(*input.shape[:-1], self.nf)

    def extra_repr(self) -> str:
        return f"nf={self.nf}, nx={self.nx}, {self._describe()}"
