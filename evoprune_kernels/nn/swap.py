"""Finding layers in a model and putting others in their place; shared by ``convert`` and ``inference``."""

from __future__ import annotations

from typing import TypeGuard

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

from evoprune_kernels.formats import Pattern
from evoprune_kernels.nn.conv1d import SparseConv1D, is_conv1d
from evoprune_kernels.nn.linear import SparseLinear
from evoprune_kernels.nn.sparse_conv import SparseConv2d
from evoprune_kernels.ops._linear import KERNEL_DTYPES

Sparse = SparseLinear | SparseConv1D | SparseConv2d


def is_sparse(module: nn.Module) -> TypeGuard[Sparse]:
    """Whether ``module`` is one of our layers."""
    return isinstance(module, Sparse)


def is_linear(module: nn.Module) -> bool:
    """Whether ``module`` is an ``nn.Linear`` (subclasses included) or transformers' ``Conv1D``."""
    return isinstance(module, nn.Linear) or is_conv1d(module)


def is_conv(module: nn.Module) -> TypeGuard[nn.Conv2d]:
    """Whether ``module`` is an ``nn.Conv2d`` (subclasses included)."""
    return isinstance(module, nn.Conv2d)


def paths(model: nn.Module) -> dict[int, list[str]]:
    """``id(module)`` -> its qualified names (several when it is shared); the root is left out."""
    found: dict[int, list[str]] = {}
    for name, module in model.named_modules(remove_duplicate=False):
        if name:
            found.setdefault(id(module), []).append(name)
    return found


def replace(model: nn.Module, name: str, module: nn.Module) -> None:
    """Put ``module`` at the qualified ``name`` inside ``model``."""
    parent, _, child = name.rpartition(".")
    model.get_submodule(parent)._modules[child] = module


def weight_of(module: nn.Module) -> Tensor:
    """The weight Parameter of a linear layer, as it is stored."""
    weight = module._parameters["weight"]
    assert weight is not None
    return weight


def dense_view(module: nn.Module) -> Tensor:
    """The weight of a layer as [out_features, in_features], whichever way it is stored."""
    transposed = is_conv1d(module) or isinstance(module, SparseConv1D)
    weight = weight_of(module).detach()
    if is_conv(module):
        return weight.reshape(weight.shape[0], -1)
    return weight.t() if transposed else weight


def share(
    module: nn.Module,
    pattern: str | Pattern,
    *,
    sparsity: float | None = None,
    stored: str | None = None,
    name: str | None = None,
) -> Sparse:
    """The sparse layer around the Parameters of a layer; nothing is pruned or packed yet."""
    if is_conv(module):
        return SparseConv2d.share(module, pattern, sparsity=sparsity, stored=stored, name=name)
    if is_conv1d(module):
        return SparseConv1D.share(module, pattern, sparsity=sparsity, stored=stored, name=name)
    assert isinstance(module, nn.Linear)
    return SparseLinear.share(module, pattern, sparsity=sparsity, stored=stored, name=name)


def why_not(module: nn.Module) -> str | None:
    """Why a module that holds a matrix cannot become a sparse linear layer, or None."""
    if not is_linear(module):
        return f"{type(module).__name__} is not a linear layer"
    return why_not_weight(module)


def why_not_weight(module: nn.Module) -> str | None:
    """Why a linear layer or a convolution cannot become a sparse one, or None."""
    kind = type(module).__name__
    weight = module._parameters.get("weight")
    if parametrize.is_parametrized(module):
        return "parametrized: call torch.nn.utils.parametrize.remove_parametrizations first"
    if weight is None:
        return "weight is not a Parameter (torch.nn.utils.prune or weight_norm): remove that first"
    if type(module) not in (nn.Linear, nn.Conv2d) and not is_conv1d(module):
        base = "Conv2d" if is_conv(module) else "Linear"
        return f"{kind} is a subclass of nn.{base}, its forward may differ"
    if "forward" in module.__dict__:
        return "its forward is replaced on the instance (a hook of another library)"
    if isinstance(weight, nn.UninitializedParameter) or weight.device.type == "meta":
        return "its weight has no values yet"
    if weight.dtype not in KERNEL_DTYPES:
        return f"dtype {weight.dtype}: the kernels take torch.float32 or torch.bfloat16"
    if weight.is_inference() or torch._debug_has_internal_overlap(weight) == 1:
        return "its weight cannot be changed in place (inference tensor or overlapping memory)"
    return None
