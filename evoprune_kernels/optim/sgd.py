"""SGD: torch's own where nothing is pruned, one fused pass with importance and masks where something is."""

from __future__ import annotations

import functools
from typing import Any

import torch
from torch import Tensor
from torch.optim.optimizer import ParamsT, _use_grad_for_differentiable
from torch.optim.sgd import sgd

from evoprune_kernels import ops
from evoprune_kernels.optim._layout import fused_is_safe, local, local_like
from evoprune_kernels.optim._masking import Group, State, zeros_like
from evoprune_kernels.optim._pruning import Bucket, Pruning
from evoprune_kernels.optim.config import PruneConfig


class SGD(Pruning, torch.optim.SGD):
    """``torch.optim.SGD`` with one more argument, ``prune``.

    ``b = momentum * b + (1 - dampening) * (g + weight_decay * w)``, ``w' = w - lr * b``, then ``w' = 0 where not mask``

    Args:
        params: parameters, named parameters or param groups; a group may carry its own ``prune``.
        lr: learning rate, a number or a one-element tensor.
        momentum: decay of the momentum buffer.
        dampening: what the gradient loses on its way into the buffer, not in the first step.
        weight_decay: coupled weight decay (an L2 penalty).
        nesterov: look one momentum step ahead.
        maximize: climb the gradient.
        foreach, differentiable, fused: as in torch, for groups that are not pruned; a pruned group always takes the
            fused op of this package, and ``differentiable`` raises there.
        prune: how the parameters of two and more dimensions are pruned; None: not at all.

    Raises:
        ValueError: as torch's SGD; if a parameter was flattened by FSDP1.
        TypeError: if a parameter of a pruned group is not floating, or ``prune`` is no PruneConfig.
        RuntimeError: for ``differentiable`` together with ``prune``.

    Notes:
        Groups with ``prune=None`` run torch's own code with torch's flags and give the same bits, except where torch's
        fused kernels are wrong: different strides of parameter and gradient, parameters with gaps, 16-bit parameters on
        the CPU, an overflow in the first step with momentum, a ``found_inf`` of more than 1, parameters that get their
        first gradient later than others, and DTensors are handled as they should be. Biases and norms of a pruned group
        are stepped without a mask. Steps with ``lr == 0`` and steps that a gradient scaler skips do not advance the
        pruning. For an lr or a ``found_inf`` on a device the host waits only where masks are chosen, a window of
        "platon" ends or a parameter takes its first step; with fp16 and fp64 parameters in every step. Deterministic.

    Source:
        Sutskever et al., "On the importance of initialization and momentum in deep learning", ICML 2013.

    Example:
        >>> import torch, evoprune_kernels as ek
        >>> weight = torch.nn.Parameter(torch.randn(32, 64))
        >>> config = ek.PruneConfig("block:8x8", sparsity=0.75, importance="taylor", start=3)
        >>> optimizer = ek.optim.SGD([weight], lr=0.1, momentum=0.9, prune=config)
        >>> for _ in range(3):
        ...     weight.grad = torch.randn(32, 64)
        ...     optimizer.step()
        >>> float((weight == 0).float().mean())
        0.75
    """

    def __init__(
        self,
        params: ParamsT,
        lr: float | Tensor = 1e-3,
        momentum: float = 0,
        dampening: float = 0,
        weight_decay: float | Tensor = 0,
        nesterov: bool = False,
        *,
        maximize: bool = False,
        foreach: bool | None = None,
        differentiable: bool = False,
        fused: bool | None = None,
        prune: PruneConfig | None = None,
    ) -> None:
        self._default_prune = prune = PruneConfig.coerce(prune)
        super().__init__(
            params, lr, momentum, dampening, weight_decay, nesterov,
            maximize=maximize, foreach=foreach, differentiable=differentiable, fused=fused,
        )  # fmt: skip
        self._finish_init(prune)

    @_use_grad_for_differentiable
    def step(self, closure: Any = None) -> Any:
        """Perform one step; ``closure`` reevaluates the model and returns the loss, which is returned."""
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
        params: list[Tensor] = []
        grads: list[Tensor] = []
        buffers: list[Tensor | None] = []
        has_sparse_grad = self._init_group(group, params, grads, buffers)
        if group["fused"] and not has_sparse_grad:
            self._plain_fused_step(group, params, grads, buffers)
            return
        self._torch_step(
            group, params, grads, buffers, getattr(self, "found_inf", None), has_sparse_grad
        )

    def _torch_step(
        self,
        group: Group,
        params: list[Tensor],
        grads: list[Tensor],
        buffers: list[Tensor | None],
        found_inf: Tensor | None,
        has_sparse_grad: bool = False,
    ) -> None:
        sgd(
            params,
            grads,
            buffers,
            has_sparse_grad=has_sparse_grad,
            foreach=group["foreach"],
            fused=group["fused"],
            grad_scale=getattr(self, "grad_scale", None),
            found_inf=found_inf,
            weight_decay=group["weight_decay"],
            momentum=group["momentum"],
            lr=group["lr"],
            dampening=group["dampening"],
            nesterov=group["nesterov"],
            maximize=group["maximize"],
        )
        if group["momentum"] != 0:
            for param, buffer in zip(params, buffers, strict=True):
                self.state[param]["momentum_buffer"] = buffer

    def _plain_fused_step(
        self, group: Group, params: list[Tensor], grads: list[Tensor], buffers: list[Tensor | None]
    ) -> None:
        """torch's fused kernel where it is right, our op where it is not."""
        found_inf = getattr(self, "found_inf", None)
        if (
            found_inf is not None
        ):  # torch compares with 1; a scaler on several devices passes their sum
            found_inf = (found_inf != 0).to(found_inf.dtype)
            if any(b is None for b in buffers) and found_inf.item() != 0:
                return  # torch would keep uninitialised memory as the momentum
        parts: dict[str, list[int]] = {"first": [], "later": [], "ours": []}
        for i, param in enumerate(params):
            parts[self._how(param, grads[i], buffers[i] if buffers else None)].append(i)
        for how, members in parts.items():
            if not members:
                continue
            chosen = [params[i] for i in members]
            g = [grads[i] for i in members]
            b = [buffers[i] for i in members] if buffers else []
            if how == "ours":
                self._our_step(group, chosen, g, found_inf)
            else:
                self._torch_step(group, chosen, g, b, found_inf)

    def _how(self, param: Tensor, grad: Tensor, buffer: Tensor | None) -> str:
        shards = local(param) is not param  # torch has no sharding rule for _fused_sgd_
        others = [grad] if buffer is None else [grad, buffer]
        if shards or not fused_is_safe(param, others):
            return "ours"
        if param.device.type == "cpu" and not cpu_fused_sgd_is_right(param.dtype):
            return "ours"
        return "first" if buffer is None else "later"

    def _our_step(
        self, group: Group, params: list[Tensor], grads: list[Tensor], found_inf: Tensor | None
    ) -> None:
        steps, buffers = [], []
        for param in params if group["momentum"] != 0 else ():
            state = self.state[param]
            known = state.get("momentum_buffer") is not None
            if not known:
                state["momentum_buffer"] = zeros_like(param, param.dtype)
            buffers.append(local(state["momentum_buffer"]))
            steps.append(torch.tensor(float(known), dtype=torch.float32, device=param.device))
        if not steps:
            steps = [torch.zeros((), dtype=torch.float32, device=p.device) for p in params]
        ops.sgd_step_(
            [local(p) for p in params],
            [local_like(g, p) for g, p in zip(grads, params, strict=True)],
            buffers, [], [], steps,
            **_hyperparameters(group), grad_scale=getattr(self, "grad_scale", None), found_inf=found_inf,
        )  # fmt: skip

    def _moments(self, group: Group) -> tuple[str, ...]:
        return ("momentum_buffer",) if group["momentum"] != 0 else ()

    def _init_moments(self, group: Group, param: Tensor, state: State) -> None:
        if group["momentum"] != 0 and state.get("momentum_buffer") is None:
            state["momentum_buffer"] = zeros_like(param, param.dtype)
            state["step"].zero_()

    def _fused_step(self, group: Group, bucket: Bucket, options: dict[str, Any]) -> None:
        ops.sgd_step_(
            bucket.params, bucket.grads, bucket.state("momentum_buffer") if group["momentum"] != 0 else [],
            bucket.importances, bucket.masks, bucket.state("step"),
            **_hyperparameters(group), **options, grad_scale=getattr(self, "grad_scale", None),
        )  # fmt: skip


@functools.cache
def cpu_fused_sgd_is_right(dtype: torch.dtype) -> bool:
    """Whether torch's fused CPU kernel steps every element; some versions skip whole SIMD blocks of 16-bit tensors."""
    if dtype not in (torch.bfloat16, torch.float16):
        return True
    param, grad = torch.ones(67, dtype=dtype), torch.ones(67, dtype=dtype)
    torch._fused_sgd_(
        [param], [grad], [], weight_decay=0.0, momentum=0.0, lr=0.5, dampening=0.0, nesterov=False,
        maximize=False, is_first_step=False,
    )  # fmt: skip
    return bool((param == 0.5).all())


def _hyperparameters(group: Group) -> dict[str, Any]:
    return {
        "lr": group["lr"],
        "momentum": float(group["momentum"]),
        "dampening": float(group["dampening"]),
        "weight_decay": float(group["weight_decay"]),
        "nesterov": bool(group["nesterov"]),
        "maximize": group["maximize"],
    }
