"""``adamw_step_`` in plain torch: the truth, the fallback and the benchmark baseline."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from evoprune_kernels.ops import _step


@torch.no_grad()
def adamw_step_reference(
    params: Sequence[Tensor],
    grads: Sequence[Tensor],
    exp_avgs: Sequence[Tensor],
    exp_avg_sqs: Sequence[Tensor],
    max_exp_avg_sqs: Sequence[Tensor],
    importances: Sequence[Tensor],
    masks: Sequence[Tensor],
    steps: Sequence[Tensor],
    *,
    lr: float | Tensor,
    beta1: float,
    beta2: float,
    eps: float,
    weight_decay: float,
    amsgrad: bool,
    maximize: bool,
    rule: str,
    alpha: float,
    grad_scale: Tensor | None = None,
    found_inf: Tensor | None = None,
    seed: int | None = None,
    point: str = "",
    sparse_decay: float = 0.0,
) -> None:
    """One AdamW step of every parameter, with importance and mask; see ``adamw_step_``."""
    _step.check_shapes(
        params, grads=grads, exp_avgs=exp_avgs, exp_avg_sqs=exp_avg_sqs,
        max_exp_avg_sqs=max_exp_avg_sqs, importances=importances, masks=masks,
    )  # fmt: skip
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
        if weight_decay != 0:
            w = w * (1 - rate * weight_decay)
        m = exp_avgs[i].to(g.dtype).lerp(g, 1 - beta1)
        v = exp_avg_sqs[i].to(g.dtype) * beta2 + (1 - beta2) * g * g
        rounding.store("first", exp_avgs[i], m)
        rounding.store("second", exp_avg_sqs[i], v)
        if amsgrad:
            v = torch.maximum(max_exp_avg_sqs[i].to(g.dtype), v)
            rounding.store("largest", max_exp_avg_sqs[i], v)
        denominator = v.sqrt() / (1 - beta2**t) ** 0.5 + eps
        new = w - (rate / (1 - beta1**t)) * m / denominator
        _step.write_weight(
            param, new, gradient, mask=mask, sparse_decay=sparse_decay,
            importance=importances[i] if importances and rate != 0 else None, rule=rule, point=point,
            alpha=alpha, rounding=rounding,
        )  # fmt: skip
