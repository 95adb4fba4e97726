"""``sgd_step_`` in plain torch: the truth, the fallback and the benchmark baseline."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from evoprune_kernels.ops import _step


@torch.no_grad()
def sgd_step_reference(
    params: Sequence[Tensor],
    grads: Sequence[Tensor],
    momentum_buffers: Sequence[Tensor],
    importances: Sequence[Tensor],
    masks: Sequence[Tensor],
    steps: Sequence[Tensor],
    *,
    lr: float | Tensor,
    momentum: float,
    dampening: float,
    weight_decay: float,
    nesterov: bool,
    maximize: bool,
    rule: str,
    alpha: float,
    grad_scale: Tensor | None = None,
    found_inf: Tensor | None = None,
    seed: int | None = None,
    point: str = "",
    sparse_decay: float = 0.0,
) -> None:
    """One SGD step of every parameter, with importance and mask; see ``sgd_step_``."""
    _step.check_shapes(
        params, grads=grads, momentum_buffers=momentum_buffers, importances=importances, masks=masks
    )
    _step.check_states(steps, importances, seed)
    _step.check_options(
        params, importances, masks, rule=rule, point=point, alpha=alpha, sparse_decay=sparse_decay
    )
    if _step.skipped(found_inf):
        return
    rate = float(lr)
    for i, param in enumerate(params):
        steps[i].add_(1)
        t = steps[i].item()
        rounding = _step.Rounding(seed, i, t)
        gradient = _step.get_gradient(grads[i], param, grad_scale, maximize)
        mask = masks[i] if masks else None
        g = _step.decay_masked(gradient, param, mask, sparse_decay)
        w = param.to(g.dtype)
        d = g + weight_decay * w if weight_decay != 0 else g
        if momentum != 0:
            buffer = momentum_buffers[i].to(g.dtype)
            b = d if t == 1 else buffer * momentum + (1 - dampening) * d
            rounding.store("first", momentum_buffers[i], b)
            d = d + momentum * b if nesterov else b
        _step.write_weight(
            param, w - rate * d, gradient, mask=mask, sparse_decay=sparse_decay,
            importance=importances[i] if importances and rate != 0 else None, rule=rule, point=point,
            alpha=alpha, rounding=rounding,
        )  # fmt: skip
