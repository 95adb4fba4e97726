"""Cutting the layers of a model to the features that stay, in place."""

from __future__ import annotations

from collections import Counter

import torch
from torch import Tensor, nn

from evoprune_kernels.nn.compaction.choose import Choice
from evoprune_kernels.nn.compaction.graph import Graph, Layer


def remove(graph: Graph) -> tuple[dict[str, tuple[int, int]], dict[str, str]]:
    """Cut every layer of the traced model; what was removed, and what is closed and stayed with the reasons."""
    choice = Choice(graph)
    plans = [(layer, choice.carriers(layer), choice.groups(layer)) for layer in graph.layers]
    removed, kept = {}, {}
    for layer, carriers, groups in plans:
        outputs = choice.mask(layer.y)
        if not bool(outputs.all()):
            removed[layer.name] = (int((~outputs).sum()), outputs.numel())
        stay = layer.y.slots[layer.closed.cpu() & outputs]
        reasons = Counter(choice.why[root] for root in graph.slots.roots(stay).tolist())
        if reasons:
            kept[layer.name] = "; ".join(f"{n} channels: {why}" for why, n in reasons.items())
        inputs = None if layer.x is None else choice.mask(layer.x)
        if not bool(outputs.all()) or (inputs is not None and not bool(inputs.all())):
            with torch.no_grad():
                _cut(layer, inputs, outputs, carriers, groups)
    for norm, features in graph.norms:
        mask = choice.mask(features)
        if not bool(mask.all()):
            _index(norm, mask, "weight", "bias", "running_mean", "running_var")
            norm.num_features = int(mask.sum())  # type: ignore[assignment]
    return removed, kept


def _cut(
    layer: Layer, inputs: Tensor | None, outputs: Tensor, carriers: list[int | None], groups: Tensor
) -> None:
    """Rows ``outputs`` and columns ``inputs``; constants of the columns that leave stay in the layer."""
    module = layer.module
    if inputs is None:
        assert isinstance(module, nn.Linear)
        inputs = torch.ones(module.in_features, dtype=torch.bool)
    if not layer.tied and not bool(inputs.all()):
        weight, bias = _columns(layer, inputs, outputs, carriers, groups)
        learned = module.weight.requires_grad
        module.weight = nn.Parameter(weight, requires_grad=learned)
        if bias is not None:
            module.bias = nn.Parameter(bias, requires_grad=learned)
    else:
        _index(module, outputs, "weight", "bias")
    if isinstance(module, nn.Conv2d):
        module.in_channels, module.out_channels = int(inputs.sum()), int(outputs.sum())
        module.groups = module.in_channels if layer.tied else int(groups.sum())
    else:
        module.in_features, module.out_features = int(inputs.sum()), int(outputs.sum())


def _columns(
    layer: Layer, inputs: Tensor, outputs: Tensor, carriers: list[int | None], groups: Tensor
) -> tuple[Tensor, Tensor | None]:
    """The weight and the bias that are left, group by group.

    ``bias += sum_c W[:, c] k_c``, or ``W[:, c0] += sum_c W[:, c] k_c / k_c0`` with a carrier ``c0``
    """
    module, x = layer.module, layer.x
    assert x is not None
    device, dtype = module.weight.device, module.weight.dtype
    weight = module.weight.detach().double()
    bias = None if module.bias is None else module.bias.detach().double()
    constant = torch.zeros(weight.shape[0], dtype=torch.float64, device=device)
    gone = (~inputs).to(device) & x.fixed.to(device)
    value = torch.where(gone, x.value.to(device).double(), 0.0).view(layer.groups, -1)
    rows = weight.view(layer.groups, -1, *weight.shape[1:])  # [groups, rows, columns, ...]
    columns, kept = inputs.view(layer.groups, -1), outputs.view(layer.groups, -1)
    parts = []
    for group in groups.nonzero().flatten().tolist():
        w, k, carrier = rows[group].clone(), value[group], carriers[group]
        if carrier is not None:
            c0 = carrier - group * w.shape[1]
            ratio = k / x.value[carrier].double()
            w[:, c0] += torch.einsum("nc...,c->n...", w, ratio)
        else:
            constant.view(layer.groups, -1)[group] = (
                w.flatten(2).sum(2) @ k if w.dim() > 2 else w @ k
            )
        parts.append(w[kept[group].to(device)][:, columns[group].to(device)])
    cut = torch.cat(parts).to(dtype)
    if weight.dim() == 4 and not weight.is_contiguous():
        cut = cut.contiguous(memory_format=torch.channels_last)
    stays = outputs.to(device)
    if bias is None and not bool((constant[stays] != 0).any()):
        return cut, None
    return cut, (constant if bias is None else bias + constant)[stays].to(dtype)


def _index(module: nn.Module, keep: Tensor, *names: str) -> None:
    for name in names:
        tensor = getattr(module, name)
        if tensor is None:
            continue
        shorter: Tensor = tensor.detach()[keep.to(tensor.device)].clone()
        if isinstance(tensor, nn.Parameter):
            shorter = nn.Parameter(shorter, requires_grad=tensor.requires_grad)
        setattr(module, name, shorter)
