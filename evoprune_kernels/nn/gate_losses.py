"""Losses of gated models: consensus among samples, a budget, and the batch-norm baseline; all differentiable scalars.

::

    loss = task + lambda_polar * polarization_loss(model) + lambda_budget * budget_loss(model, kept=0.5)
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from evoprune_kernels._check import check
from evoprune_kernels.nn.conv import (
    COUNTED,
    GatedBlock,
    GatedConv2d,
    GatedLinear,
    channel_cost,
)
from evoprune_kernels.nn.gates import gates_of


def polarization_loss(model: nn.Module) -> Tensor:
    """How far the samples of the last batch are from one decision.

    ``R = (1/S) sum_s gbar_s (1 - gbar_s)``, gbar_s the mean over the batch of gate s, S all gates of the model

    Args:
        model: with gates, after a forward in which gradients were enabled.

    Returns:
        scalar in [0, 1/4], float32 (float64 for float64 gates); 0 exactly where all samples agree on every gate.

    Raises:
        ValueError: if the model has no gate, or the last batch was empty.
        RuntimeError: if dynamic gates have seen no forward.

    Notes:
        Static gates are the same for every sample: they add 0, and a gradient that holds a gate where it is. That hold
        is as strong as the pull of ``budget_loss`` at equal factors and costs: give the budget the larger factor.

    Source:
        Zhi et al., arXiv 2302.10798 (the sites and the word); g (1 - g) is this package's reading of it.

    Example:
        >>> import torch
        >>> from evoprune_kernels.nn import GatedConv2d
        >>> polarization_loss(GatedConv2d(1, 2, 1)).item()
        0.0
    """
    means = _mean_gates(model)
    every = torch.cat([mean.to(means[0].device) for mean in means])
    return (every * (1 - every)).mean()


def budget_loss(model: nn.Module, kept: float, by: str = "parameters") -> Tensor:
    """How far the open share of the gated layers is from the wanted one.

    ``R = | sum_s c_s gbar_s / sum_s c_s - kept |``

    Args:
        model: with gates, after a forward (static gates counted in parameters need none).
        kept: wanted share of the cost, in (0, 1].
        by: ``"parameters"``, or ``"flops"``: 2 a multiply-add, at the output sizes of the last forward.

    Returns:
        scalar, float32 (float64 for float64 gates).

    Raises:
        ValueError: for ``kept`` outside (0, 1], another ``by``, or a model without gates.
        RuntimeError: if FLOPs or dynamic gates have seen no forward.

    Notes:
        A gated layer's channel costs its own weights and bias. What a ``GatedBlock`` closes is every convolution and
        linear layer of its branch: a gated channel there counts gbar of the channel times gbar of the block. That a
        closed channel also shrinks the layer behind is not counted: compacted models are smaller than ``kept`` says.
        At the wanted share the gradient is 0.

    Source:
        Zhi et al., arXiv 2302.10798.

    Example:
        >>> import torch
        >>> from evoprune_kernels.nn import GatedConv2d
        >>> layer = GatedConv2d(1, 4, 1)
        >>> _ = layer.gate.freeze(torch.tensor([True, True, True, False]))
        >>> budget_loss(layer, kept=0.5).item()
        0.25
    """
    check(0 < kept <= 1, f"expected 0 < kept <= 1, got {kept}")
    check(by in COUNTED, f"expected by in {COUNTED}, got {by!r}")
    device = _mean_gates(model)[0].device
    opened, total = [], 0.0
    for module, enclosing in _sites(model, ()):
        channels = module.weight.shape[0]
        cost = channel_cost(module, by)
        share = torch.ones(1, device=device)
        if isinstance(module, GatedConv2d | GatedLinear):
            share = _wide(module.gate.mean_gates()).to(device)
        for block in enclosing:
            share = share * _wide(block.gate.mean_gates()).to(device)
        opened.append(share.mean() * (cost * channels))
        total += cost * channels
    check(total > 0, "expected gated layers with weights, got none")
    return (torch.stack(opened).sum() / total - kept).abs()


def bn_polarization(model: nn.Module, t: float = 1.4) -> Tensor:
    """The baseline without gates: batch-norm scales are pushed to 0 or to a common value.

    ``R = t * sum |gamma| - sum |gamma - mean(gamma)|``, sums and mean over all layers

    Args:
        model: with batch norms that have a scale.
        t: >= 0; larger removes more. 1.4 (ResNet-56) and 1.5 (VGG-16) on CIFAR-10, with weights of 5e-5 and 3e-5.

    Returns:
        scalar; may be negative.

    Raises:
        ValueError: for t < 0, or a model without batch norms.

    Notes:
        The authors clamp the scales to [0, 1] after every step: ``clamp_bn_scales_``.

    Source:
        Zhuang et al., "Neuron-level Structured Pruning using Polarization Regularizer", NeurIPS 2020.

    Example:
        >>> import torch
        >>> norm = torch.nn.BatchNorm2d(2)
        >>> with torch.no_grad():
        ...     _ = norm.weight.copy_(torch.tensor([0.0, 1.0]))
        >>> bn_polarization(norm, t=1.5).item()
        0.5
    """
    check(t >= 0, f"expected t >= 0, got {t}")
    scales = list(_bn_scales(model))
    check(len(scales) > 0, "expected a model with batch norms that have a scale, got none")
    gamma = torch.cat([_wide(scale).to(scales[0].device) for scale in scales])
    return t * gamma.abs().sum() - (gamma - gamma.mean()).abs().sum()


def clamp_bn_scales_(model: nn.Module, low: float = 0.0, high: float = 1.0) -> None:
    """Every batch-norm scale into [low, high], in place: after each optimizer step with ``bn_polarization``.

    Example:
        >>> import torch
        >>> norm = torch.nn.BatchNorm2d(1)
        >>> with torch.no_grad():
        ...     _ = norm.weight.fill_(3.0)
        >>> clamp_bn_scales_(norm)
        >>> norm.weight.item()
        1.0
    """
    with torch.no_grad():
        for scale in _bn_scales(model):
            scale.clamp_(low, high)


def _bn_scales(model: nn.Module) -> Iterator[Tensor]:
    for module in model.modules():
        if isinstance(module, _BatchNorm) and module.weight is not None:
            yield module.weight


def _mean_gates(model: nn.Module) -> list[Tensor]:
    """``gbar`` of every gate, in float32 or float64."""
    gates = gates_of(model)
    check(len(gates) > 0, f"expected a model with gates, got none in {type(model).__name__}")
    return [_wide(gate.mean_gates()) for gate in gates.values()]


def _wide(x: Tensor) -> Tensor:
    return x.to(torch.promote_types(x.dtype, torch.float32))


def _sites(
    module: nn.Module, enclosing: tuple[GatedBlock, ...], seen: set[int] | None = None
) -> Iterator[tuple[nn.Conv2d | nn.Linear, tuple[GatedBlock, ...]]]:
    """Every layer that a gate can close, its own or one around it, once, with the blocks around it."""
    seen = set() if seen is None else seen
    if id(module) in seen:
        return
    seen.add(id(module))
    gated = isinstance(module, GatedConv2d | GatedLinear)
    if gated or (enclosing and isinstance(module, nn.Conv2d | nn.Linear)):
        yield module, enclosing  # type: ignore[misc]
        return
    for name, child in module.named_children():
        inside = isinstance(module, GatedBlock) and name == "branch"
        yield from _sites(child, (*enclosing, module) if inside else enclosing, seen)  # type: ignore[arg-type]
