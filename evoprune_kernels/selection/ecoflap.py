"""ECoFLaP: how much each layer may lose, told by how much the loss moves when the layer does.

Coarse to fine: a score for each layer (here), a share of the kept weights for each layer in proportion (here), and
then a layer-wise selection at that share (``wanda_masks`` or ``sparsegpt_``, which take the budgets as ``kept``).
"""

from __future__ import annotations

import math
import random
from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor, nn

from evoprune_kernels._check import check
from evoprune_kernels.selection._layers import Layer, find_layers
from evoprune_kernels.selection.budgets import proportional
from evoprune_kernels.selection.calibration import evaluating

#: ``loss(model, batch)`` -> scalar tensor
Loss = Callable[[nn.Module, Any], Tensor]

ORDERS = ("zeroth", "first")

#: how far below the mean share a layer may fall
SLACK = 0.1


def layer_scores(
    model: nn.Module,
    batches: Iterable[Any],
    loss: Loss,
    *,
    order: str = "zeroth",
    eps: float = 1e-3,
    seed: int = 0,
    exclude: Iterable[str] = (),
) -> dict[str, float]:
    """How strongly the loss depends on each layer.

    ``zeroth: S_l = sum over batches of |L(w_l + eps z) - L(w_l - eps z)| / (2 eps),  z ~ N(0, 1)``
    ``first:  S_l = sum over the weights of w^2 * mean over batches of (dL/dw)^2``

    Args:
        model: runs in eval mode; weights, modes and ``.grad`` are afterwards bitwise as they were, also after an error.
        batches: calibration data; held as a list by ``"zeroth"``.
        loss: ``loss(model, batch)``, a scalar tensor.
        order: ``"zeroth"`` needs two forward passes for each layer and batch, and memory for a copy of one layer;
            ``"first"`` one backward pass for each batch, and memory for two gradients of every layer.
        eps: step of the difference, > 0, in units of the weight.
        seed: of the noise. A draw depends on the seed, the name of the layer and the number of the batch, and on
            nothing else; it is drawn again, not stored.
        exclude: names of modules or parameters to leave out; wildcards are allowed.

    Returns:
        weight name -> score >= 0.

    Raises:
        ValueError: for a loss that is not a finite scalar, no batch, a layer that the loss does not depend on
            (``"first"``), or a number out of range.
        TypeError: for a loss that is no tensor.

    Notes:
        In bfloat16 a step of 1e-3 is lost to rounding for weights beyond about 0.25: use a larger ``eps`` there.

    Source:
        Sung et al., "ECoFLaP: Efficient Coarse-to-Fine Layer-Wise Pruning for Vision-Language Models",
        arXiv 2310.02998.

    Example:
        >>> import torch
        >>> from evoprune_kernels.selection import layer_scores
        >>> model = torch.nn.Sequential(torch.nn.Linear(4, 4), torch.nn.Linear(4, 1))
        >>> scores = layer_scores(model, [torch.ones(2, 4)], lambda model, x: model(x).square().mean())
        >>> list(scores), all(score >= 0 for score in scores.values())
        (['0.weight', '1.weight'], True)
    """
    check(order in ORDERS, f"expected order in {ORDERS}, got {order!r}")
    check(0 < eps < math.inf, f"expected eps > 0, got {eps}")
    layers = list(find_layers(model, exclude).values())
    with evaluating(model):
        if order == "first":
            return _first_order(model, batches, loss, layers)
        batches = list(batches)
        check(bool(batches), "expected at least one calibration batch, got none")
        return {ly.name: _zeroth_order(model, batches, loss, ly, eps, seed) for ly in layers}


@torch.no_grad()
def _zeroth_order(
    model: nn.Module, batches: list[Any], loss: Loss, layer: Layer, eps: float, seed: int
) -> float:
    weight = layer.weight
    saved = weight.detach().clone()
    generator = torch.Generator(weight.device)
    dtype = torch.promote_types(weight.dtype, torch.float32)

    def loss_at(step: float, batch: Any, draw: int) -> float:
        noise = torch.randn(
            weight.shape, generator=generator.manual_seed(draw), device=weight.device, dtype=dtype
        )
        weight.copy_(noise.mul_(step).add_(saved))
        return _value(loss(model, batch), layer.name).item()

    total = 0.0
    try:
        for number, batch in enumerate(batches):
            draw = random.Random(f"{seed}:{layer.name}:{number}").getrandbits(63)
            total += abs(loss_at(eps, batch, draw) - loss_at(-eps, batch, draw)) / (2 * eps)
    finally:
        weight.copy_(saved)
    return total


def _first_order(
    model: nn.Module, batches: Iterable[Any], loss: Loss, layers: list[Layer]
) -> dict[str, float]:
    weights = [layer.weight for layer in layers]
    wanted = [weight.requires_grad for weight in weights]
    squares = [
        torch.zeros_like(w, dtype=torch.promote_types(w.dtype, torch.float32)) for w in weights
    ]
    count = 0
    try:
        for weight in weights:
            weight.requires_grad_(True)
        with torch.enable_grad():
            for batch in batches:
                value = _value(loss(model, batch), "the loss")
                for layer, square, grad in zip(
                    layers,
                    squares,
                    torch.autograd.grad(value, weights, allow_unused=True),
                    strict=True,
                ):
                    if grad is None:
                        raise ValueError(
                            f"{layer.name}: the loss does not depend on it: exclude it"
                        )
                    square += grad.to(square.dtype).square_()
                count += 1
    finally:
        for weight, before in zip(weights, wanted, strict=True):
            weight.requires_grad_(before)
    check(count > 0, "expected at least one calibration batch, got none")
    return {
        layer.name: float((layer.weight.detach().double().square() * square).sum()) / count
        for layer, square in zip(layers, squares, strict=True)
    }


def _value(loss: Tensor, name: str) -> Tensor:
    if not isinstance(loss, Tensor):
        raise TypeError(f"{name}: expected a scalar tensor as loss, got {type(loss).__name__}")
    if loss.numel() != 1:
        raise ValueError(f"{name}: expected a scalar loss, got one of shape {tuple(loss.shape)}")
    check(bool(loss.isfinite()), f"{name}: expected a finite loss, got {loss.item()}")
    return loss.reshape(())


def ecoflap_budgets(
    model: nn.Module,
    batches: Iterable[Any],
    loss: Loss,
    kept: float,
    *,
    floor_kept: float | None = None,
    order: str = "zeroth",
    eps: float = 1e-3,
    seed: int = 0,
    exclude: Iterable[str] = (),
) -> dict[str, float]:
    """The share that each layer keeps, so that all together keep ``kept``.

    ``kept weights of l = ceil(floor_kept * n_l) + what is left * S_l / sum of S,  at most n_l``

    Args:
        model, batches, loss, order, eps, seed, exclude: see ``layer_scores``.
        kept: share of the weights of all layers that is kept, in (0, 1].
        floor_kept: the least share that a layer keeps; None: ``max(0, kept - 0.1)``.

    Returns:
        weight name -> kept share: what ``wanda_masks`` and ``sparsegpt_`` take as ``kept``. ``round(share * n_l)`` is
        the exact count of the layer, and the counts add up to ``round(kept * sum of n_l)``.

    Raises:
        ValueError: as ``layer_scores``; for shares out of range, or a floor that is above ``kept``.

    Notes:
        Deterministic given ``seed``. What a full layer cannot take goes to the others, again in proportion. Fractions
        of a weight go to the largest remainder; ties: the first layer. With ``floor_kept`` 0 (``kept`` of 0.1 or less)
        a layer of a small score may be left with nothing, and the share 0.

    Source:
        Sung et al., "ECoFLaP: Efficient Coarse-to-Fine Layer-Wise Pruning for Vision-Language Models",
        arXiv 2310.02998.

    Example:
        >>> import torch
        >>> from evoprune_kernels.selection import ecoflap_budgets, wanda_masks
        >>> model = torch.nn.Sequential(torch.nn.Linear(16, 16), torch.nn.ReLU(), torch.nn.Linear(16, 16))
        >>> x = [torch.randn(8, 16)]
        >>> budgets = ecoflap_budgets(model, x, lambda model, x: model(x).square().mean(), kept=0.5)
        >>> sum(round(share * 256) for share in budgets.values())
        256
        >>> masks = wanda_masks(model, x, kept=budgets)
    """
    check(0.0 < kept <= 1.0, f"expected 0 < kept <= 1, got {kept}")
    floor = max(0.0, kept - SLACK) if floor_kept is None else floor_kept
    check(0.0 <= floor <= kept, f"expected 0 <= floor_kept <= kept={kept}, got {floor}")
    scores = layer_scores(model, batches, loss, order=order, eps=eps, seed=seed, exclude=exclude)
    layers = find_layers(model, exclude)
    sizes = {name: layers[name].weight.numel() for name in scores}
    return proportional(scores, sizes, kept, floor)
