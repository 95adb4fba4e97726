"""AdamW: torch's own where nothing is pruned, one fused pass with importance and masks where something is."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.optim.adamw import adamw
from torch.optim.optimizer import ParamsT, _use_grad_for_differentiable

from evoprune_kernels import ops
from evoprune_kernels.optim._layout import fused_is_safe, is_distributed
from evoprune_kernels.optim._masking import Group, State, zeros_like
from evoprune_kernels.optim._pruning import Bucket, Pruning
from evoprune_kernels.optim.config import PruneConfig


class AdamW(Pruning, torch.optim.AdamW):
    """``torch.optim.AdamW`` with one more argument, ``prune``.

    ``w' = (1 - lr * weight_decay) * w - lr * m_hat / (sqrt(v_hat) + eps)``, then ``w' = 0 where not mask``

    Args:
        params: parameters, named parameters or param groups; a group may carry its own ``prune``.
        lr: learning rate, a number or a one-element tensor.
        betas: decays of the two moments.
        eps: added to the root of the second moment.
        weight_decay: decoupled weight decay, a fraction of lr.
        amsgrad: use the largest second moment so far.
        maximize: climb the gradient.
        foreach, capturable, differentiable, fused: as in torch, for groups that are not pruned; a pruned group always
            takes the fused op of this package, and ``differentiable`` raises there.
        prune: how the parameters of two and more dimensions are pruned; None: not at all.

    Raises:
        ValueError: as torch's AdamW; if a parameter was flattened by FSDP1.
        TypeError: if a parameter of a pruned group is not floating, or ``prune`` is no PruneConfig.
        RuntimeError: for ``differentiable`` together with ``prune``.

    Notes:
        Groups with ``prune=None`` run torch's own code with torch's flags and give the same bits, except where torch's
        fused kernels are wrong: parameters and gradients of different strides, parameters with gaps and a
        ``found_inf`` of more than 1 are handled as they should be. Biases and norms of a pruned group are stepped
        without a mask.
        Steps with ``lr == 0`` and steps that a gradient scaler skips do not advance the pruning. For an lr or a
        ``found_inf`` on a device the host waits only where masks are chosen, a window of "platon" ends or a parameter
        takes its first step; with fp16 and fp64 parameters in every step. Deterministic.

    Source:
        Loshchilov and Hutter, "Decoupled Weight Decay Regularization", ICLR 2019.

    Example:
        >>> import torch, evoprune_kernels as ek
        >>> model = torch.nn.Sequential(torch.nn.Linear(8, 16), torch.nn.ReLU(), torch.nn.Linear(16, 4))
        >>> config = ek.PruneConfig("2:4", start=2, end=6, every=2)
        >>> optimizer = ek.optim.AdamW(model.parameters(), lr=1e-2, prune=config)
        >>> for _ in range(8):
        ...     optimizer.zero_grad()
        ...     model(torch.randn(32, 8)).square().mean().backward()
        ...     optimizer.step()
        >>> optimizer.sparsity_report()["sparsity"]
        0.5
        >>> int((model[0].weight == 0).view(16, 2, 4).sum(-1).min())
        2
    """

    def __init__(
        self,
        params: ParamsT,
        lr: float | Tensor = 1e-3,
        betas: tuple[float | Tensor, float | Tensor] = (0.9, 0.999),
        eps: float = 1e-8,
        weight_decay: float = 1e-2,
        amsgrad: bool = False,
        *,
        maximize: bool = False,
        foreach: bool | None = None,
        capturable: bool = False,
        differentiable: bool = False,
        fused: bool | None = None,
        prune: PruneConfig | None = None,
    ) -> None:
        self._default_prune = prune = PruneConfig.coerce(prune)
        super().__init__(
            params, lr, betas, eps, weight_decay, amsgrad,
            maximize=maximize, foreach=foreach, capturable=capturable,
            differentiable=differentiable, fused=fused,
        )  # fmt: skip
        self._finish_init(prune)

    @_use_grad_for_differentiable
    def step(self, closure: Any = None) -> Any:
        """Perform one step; ``closure`` reevaluates the model and returns the loss, which is returned."""
        self._accelerator_graph_capture_health_check()
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for group in self.param_groups:
            if group["prune"] is None:
                self._plain_step(group)
            else:
                self._pruned_step(group)
        return loss

    def _plain_step(self, group: Group) -> None:
        lists: list[list[Tensor]] = [[], [], [], [], [], []]
        has_complex = self._init_group(group, *lists)
        grad_scale = getattr(self, "grad_scale", None)
        found_inf = getattr(self, "found_inf", None)
        if group["fused"]:
            if (
                found_inf is not None
            ):  # torch compares with 1; a scaler on several devices passes their sum
                found_inf = (found_inf != 0).to(found_inf.dtype)
            lists = _step_unsafe(group, lists, grad_scale, found_inf)
        params, grads, exp_avgs, exp_avg_sqs, max_exp_avg_sqs, steps = lists
        beta1, beta2 = group["betas"]
        adamw(
            params,
            grads,
            exp_avgs,
            exp_avg_sqs,
            max_exp_avg_sqs,
            steps,
            foreach=group["foreach"],
            capturable=group["capturable"],
            differentiable=group["differentiable"],
            fused=group["fused"],
            grad_scale=grad_scale,
            found_inf=found_inf,
            has_complex=has_complex,
            amsgrad=group["amsgrad"],
            beta1=beta1,
            beta2=beta2,
            lr=group["lr"],
            weight_decay=group["weight_decay"],
            eps=group["eps"],
            maximize=group["maximize"],
        )

    def _moments(self, group: Group) -> tuple[str, ...]:
        return ("exp_avg", "exp_avg_sq") + (("max_exp_avg_sq",) if group["amsgrad"] else ())

    def _init_moments(self, group: Group, param: Tensor, state: State) -> None:
        for key in self._moments(group):
            if key not in state:
                state[key] = zeros_like(param, param.dtype)

    def _fused_step(self, group: Group, bucket: Bucket, options: dict[str, Any]) -> None:
        ops.adamw_step_(
            bucket.params, bucket.grads, bucket.state("exp_avg"), bucket.state("exp_avg_sq"),
            bucket.state("max_exp_avg_sq") if group["amsgrad"] else [],
            bucket.importances, bucket.masks, bucket.state("step"),
            **_hyperparameters(group), **options, grad_scale=getattr(self, "grad_scale", None),
        )  # fmt: skip


def _step_unsafe(
    group: Group, lists: list[list[Tensor]], grad_scale: Tensor | None, found_inf: Tensor | None
) -> list[list[Tensor]]:
    """Step the parameters that torch's fused kernel gets wrong, with our op; the lists of the others."""
    params, moving = lists[0], lists[1:5]  # gradients and moments; steps have a shape of their own
    unsafe = {
        i
        for i, p in enumerate(params)
        if not is_distributed(p) and not fused_is_safe(p, [x[i] for x in moving if x])
    }
    if not unsafe:
        return lists
    bad = [[x for i, x in enumerate(entries) if i in unsafe] for entries in lists]
    ops.adamw_step_(
        bad[0], bad[1], bad[2], bad[3], bad[4], [], [], bad[5],
        **_hyperparameters(group), grad_scale=grad_scale, found_inf=found_inf,
    )  # fmt: skip
    return [[x for i, x in enumerate(entries) if i not in unsafe] for entries in lists]


def _hyperparameters(group: Group) -> dict[str, Any]:
    beta1, beta2 = group["betas"]
    return {
        "lr": group["lr"],
        "beta1": float(beta1),
        "beta2": float(beta2),
        "eps": float(group["eps"]),
        "weight_decay": float(group["weight_decay"]),
        "amsgrad": group["amsgrad"],
        "maximize": group["maximize"],
    }
