"""``evoprune::sgd_step_``: SGD, importance and mask of a whole list of parameters in one pass over memory."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from evoprune_kernels._check import check
from evoprune_kernels.ops import _entries, _step
from evoprune_kernels.ops._op import define
from evoprune_kernels.ops.sgd_step.reference import sgd_step_reference

_LISTS = (
    "Tensor(a!)[] params, Tensor(b!)[] grads, Tensor(c!)[] momentum_buffers, Tensor(d!)[] importances, "
    "Tensor[] masks, Tensor(e!)[] steps"
)
_SCALARS = (
    "float momentum, float dampening, float weight_decay, bool nesterov, bool maximize, "
    "str rule, float alpha, Tensor? grad_scale=None, Tensor? found_inf=None, int? seed=None, "
    "str point='', float sparse_decay=0.0"
)


def _fake(*args: Any, **kwargs: Any) -> None:
    """Nothing is returned, and shapes do not change."""


OP = define(
    f"sgd_step_({_LISTS}, *, float lr, {_SCALARS}) -> ()",
    reference=sgd_step_reference,
    fake=_fake,
)
OP_TENSOR_LR = define(
    f"sgd_step_.tensor_lr({_LISTS}, *, Tensor lr, {_SCALARS}) -> ()",
    reference=sgd_step_reference,
    fake=_fake,
)


def sgd_step_(
    params: Sequence[Tensor],
    grads: Sequence[Tensor],
    momentum_buffers: Sequence[Tensor],
    importances: Sequence[Tensor],
    masks: Sequence[Tensor],
    steps: Sequence[Tensor],
    *,
    lr: float | Tensor,
    momentum: float = 0.0,
    dampening: float = 0.0,
    weight_decay: float = 0.0,
    nesterov: bool = False,
    maximize: bool = False,
    rule: str = "none",
    alpha: float = 0.0,
    grad_scale: Tensor | None = None,
    found_inf: Tensor | None = None,
    seed: int | None = None,
    point: str = "",
    sparse_decay: float = 0.0,
    impl: str | None = None,
) -> None:
    """SGD step with momentum, importance update and mask of every parameter, in place.

    ``g = grad / grad_scale``, ``-g`` if ``maximize``; ``g += sparse_decay * w where not mask``;
    ``d = g + weight_decay * w``;
    ``b = momentum * b + (1 - dampening) * d``, or ``b = d`` where ``step == 0``; ``step += 1``;
    ``d = d + momentum * b`` if ``nesterov``, else ``b``; ``w' = w - lr * d``;
    ``w' = 0 where not mask`` without ``sparse_decay``; ``importance += alpha * (x - importance)`` unless ``lr == 0``;
    ``x = w'`` (evolution), ``|w'|`` (evolution_abs), ``|w * grad|`` (taylor) or ``-w * grad`` (movement)

    Args:
        params: weights, fp32 or bf16 (the reference: any floating dtype), of any shapes and strides.
        grads: their gradients, the parameter's shape and dtype; unscaled in place when ``grad_scale`` is given.
        momentum_buffers: b, fp32 or the parameter's dtype; unused, and may be an empty list, where momentum is 0.
        importances: fp32 running averages of the rule; an empty list where the rule keeps none. With a seed also bf16.
        masks: torch.bool, True = keep; an empty list: no masks. Momentum and importance also move where False.
        steps: how many steps each parameter took, 0-dim fp32; increased by one. At 0 the momentum buffer is not yet
            initialised and is only written, whatever it holds.
        lr: learning rate, a number or a one-element tensor.
        momentum: decay of the momentum buffer.
        dampening: what the gradient loses on its way into the buffer.
        weight_decay: coupled weight decay (an L2 penalty).
        nesterov: look one momentum step ahead.
        maximize: climb the gradient.
        rule: "none", "magnitude", "evolution", "evolution_abs", "taylor" or "movement".
        alpha: share of this step in the importance, 0 to 1, from ``importance.alpha``.
        grad_scale: one element; gradients are divided by it.
        found_inf: one element; when it is not 0, nothing at all changes.
        seed: None: bf16 results are rounded to nearest. A number: weights and moments in bf16 are rounded randomly,
            up with the probability of what is cut off, so that small changes add up instead of being lost. Give the
            same seed again and again: the number of the step is mixed in. fp32 and unscaled gradients are not affected.
        point: which w the importance looks at, "pre" or "post" the step; "" is the rule's own choice, "post" for the
            evolutions and "pre" for taylor and movement. "post" is the weight as stored, and with taylor and movement
            the weight before the mask zeroes it, rounded as stored (``importance.Rule``).
        sparse_decay: 0: masked weights are zero. More: they are not, but decay: ``g += sparse_decay * w`` where not
            mask, before the moments (the importance is of g without it). Needs masks.
        impl: insist on an implementation (``"cuda"``, ``"cpu"`` or ``"reference"``).

    Raises:
        ValueError: if a list has the wrong length, momentum has no buffers, an option is unknown or out of range,
            ``sparse_decay`` has no masks, or importances are bf16 without a seed.
        RuntimeError: if shapes, dtypes or devices do not match, a written tensor overlaps itself, or ``impl="cpu"`` is
            given a seed.

    Notes:
        Math in fp32 (fp64 for fp64 parameters), stored once, to nearest even without a seed. Masked weights are exactly
        +0.0, also where the step gives NaN. Deterministic: every element is computed on its own, so the
        number of threads cannot change it. Dense tensors that share their strides are stepped in place,
        others through a contiguous copy. fp16 and fp64 parameters take the reference. So do CPU tensors with a
        seed, since the kernels there round to nearest only, and importances in bf16, since all kernels keep fp32.
        With a seed the random bits are those of Philox 4x32-10, counted by the seed, the step, the index of the tensor
        in the list and that of the element in the tensor: they depend on neither device nor layout. On CUDA the
        kernels do not wait for the device: steps, a tensor lr, grad_scale and found_inf are read there. Steps on the
        CPU are taken too, but then found_inf has to be waited for; the reference waits for all of them.

    Source:
        Sutskever et al., "On the importance of initialization and momentum in deep learning", ICML 2013, in the form of
        ``torch.optim.SGD``; rules: ``evoprune_kernels.importance``; sparse_decay: SR-STE of Zhou et al., "Learning N:M
        Fine-grained Structured Sparse Neural Networks From Scratch", ICLR 2021, arXiv 2102.04010.

    Example:
        >>> import torch
        >>> from evoprune_kernels import ops
        >>> w, step = torch.ones(2), torch.tensor(0.0)
        >>> ops.sgd_step_([w], [torch.ones(2)], [], [], [torch.tensor([True, False])], [step], lr=0.5)
        >>> w, step
        (tensor([0.5000, 0.0000]), tensor(1.))
    """
    _step.check_lists(
        params, {"grads": grads, "steps": steps},
        momentum_buffers=momentum_buffers, importances=importances, masks=masks,
    )  # fmt: skip
    _step.check_options(
        params, importances, masks, rule=rule, point=point, alpha=alpha, sparse_decay=sparse_decay
    )
    check(
        momentum == 0 or len(momentum_buffers) == len(params),
        f"momentum={momentum} needs {len(params)} momentum_buffers, got {len(momentum_buffers)}",
    )
    none: list[Tensor] = []
    lists = (params, grads, momentum_buffers, none, none, importances, masks, steps)
    plain = seed is None and (momentum != 0 or not momentum_buffers)
    entries = _entries.collect(OP.name, impl, lists, lr, grad_scale, found_inf) if plain else None
    if entries is not None:
        torch.ops.evoprune_raw.sgd_step_entries(
            entries.address, entries.count, float(lr), momentum, dampening, weight_decay, nesterov,
            maximize, rule, alpha, grad_scale, found_inf, point, sparse_decay,
        )  # fmt: skip
        return
    if impl is None and _step.reference_instead(params, importances, seed):
        impl = "reference"
    op = OP_TENSOR_LR if isinstance(lr, torch.Tensor) else OP
    op(
        params, grads, momentum_buffers, importances, masks, steps,
        lr=lr, momentum=momentum, dampening=dampening, weight_decay=weight_decay, nesterov=nesterov,
        maximize=maximize, rule=rule, alpha=alpha, grad_scale=grad_scale, found_inf=found_inf,
        seed=seed, point=point, sparse_decay=sparse_decay, impl=impl,
    )  # fmt: skip
