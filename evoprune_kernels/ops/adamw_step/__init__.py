"""``evoprune::adamw_step_``: AdamW, importance and mask of a whole list of parameters in one pass over memory."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from evoprune_kernels._check import check
from evoprune_kernels.ops import _entries, _step
from evoprune_kernels.ops._op import define
from evoprune_kernels.ops.adamw_step.reference import adamw_step_reference

_LISTS = (
    "Tensor(a!)[] params, Tensor(b!)[] grads, Tensor(c!)[] exp_avgs, Tensor(d!)[] exp_avg_sqs, "
    "Tensor(e!)[] max_exp_avg_sqs, Tensor(f!)[] importances, Tensor[] masks, Tensor(g!)[] steps"
)
_SCALARS = (
    "float beta1, float beta2, float eps, float weight_decay, bool amsgrad, bool maximize, "
    "str rule, float alpha, Tensor? grad_scale=None, Tensor? found_inf=None, int? seed=None, "
    "str point='', float sparse_decay=0.0"
)


def _fake(*args: Any, **kwargs: Any) -> None:
    """Nothing is returned, and shapes do not change."""


OP = define(
    f"adamw_step_({_LISTS}, *, float lr, {_SCALARS}) -> ()",
    reference=adamw_step_reference,
    fake=_fake,
)
OP_TENSOR_LR = define(
    f"adamw_step_.tensor_lr({_LISTS}, *, Tensor lr, {_SCALARS}) -> ()",
    reference=adamw_step_reference,
    fake=_fake,
)


def adamw_step_(
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
    amsgrad: bool = False,
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
    """AdamW step, importance update and mask of every parameter, in place.

    ``g = grad / grad_scale``, ``-g`` if ``maximize``; ``g += sparse_decay * w where not mask``; ``step += 1``;
    ``m = lerp(m, g, 1 - beta1)``; ``v = beta2 * v + (1 - beta2) * g**2``; ``u = max(u, v)`` if ``amsgrad`` else ``v``;
    ``w' = (1 - lr * weight_decay) * w - lr / (1 - beta1**step) * m / (sqrt(u) / sqrt(1 - beta2**step) + eps)``;
    ``w' = 0 where not mask`` without ``sparse_decay``; ``importance += alpha * (x - importance)`` unless ``lr == 0``;
    ``x = w'`` (evolution), ``|w'|`` (evolution_abs), ``|w * grad|`` (taylor) or ``-w * grad`` (movement)

    Args:
        params: weights, fp32 or bf16 (the reference: any floating dtype), of any shapes and strides.
        grads: their gradients, the parameter's shape and dtype; unscaled in place when ``grad_scale`` is given.
        exp_avgs: first moments m, fp32 or the parameter's dtype, zero before the first step.
        exp_avg_sqs: second moments v, of the dtype of ``exp_avgs``.
        max_exp_avg_sqs: largest v so far, with ``amsgrad``; else an empty list.
        importances: fp32 running averages of the rule; an empty list where the rule keeps none. With a seed also bf16.
        masks: torch.bool, True = keep; an empty list: no masks. Moments and importance also move where False.
        steps: how many steps each parameter took, 0-dim fp32; increased by one.
        lr: learning rate, a number or a one-element tensor.
        beta1: decay of the first moment.
        beta2: decay of the second moment.
        eps: added to the root of the second moment.
        weight_decay: decoupled weight decay, a fraction of lr.
        amsgrad: use the largest second moment so far.
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
        ValueError: if a list has the wrong length, an option is unknown or out of range, ``sparse_decay`` has no
            masks, or importances are bf16 without a seed.
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
        Loshchilov and Hutter, "Decoupled Weight Decay Regularization", ICLR 2019; rules:
        ``evoprune_kernels.importance``; sparse_decay: SR-STE of Zhou et al., "Learning N:M Fine-grained Structured
        Sparse Neural Networks From Scratch", ICLR 2021, arXiv 2102.04010.

    Example:
        >>> import torch
        >>> from evoprune_kernels import ops
        >>> w, g, m, v, step = torch.ones(2), torch.ones(2), torch.zeros(2), torch.zeros(2), torch.tensor(0.0)
        >>> ops.adamw_step_([w], [g], [m], [v], [], [], [torch.tensor([True, False])], [step], lr=0.5,
        ...                 beta1=0.9, beta2=0.999, eps=1e-8, weight_decay=0.0)
        >>> w, step
        (tensor([0.5000, 0.0000]), tensor(1.))
    """
    required = {"grads": grads, "exp_avgs": exp_avgs, "exp_avg_sqs": exp_avg_sqs, "steps": steps}
    _step.check_lists(
        params, required, max_exp_avg_sqs=max_exp_avg_sqs, importances=importances, masks=masks
    )
    _step.check_options(
        params, importances, masks, rule=rule, point=point, alpha=alpha, sparse_decay=sparse_decay
    )
    check(
        not amsgrad or len(max_exp_avg_sqs) == len(params),
        f"amsgrad needs {len(params)} max_exp_avg_sqs, one a parameter, got {len(max_exp_avg_sqs)}",
    )
    lists = (params, grads, exp_avgs, exp_avg_sqs, max_exp_avg_sqs, importances, masks, steps)
    plain = seed is None and (amsgrad or not max_exp_avg_sqs)
    entries = _entries.collect(OP.name, impl, lists, lr, grad_scale, found_inf) if plain else None
    if entries is not None:
        torch.ops.evoprune_raw.adamw_step_entries(
            entries.address, entries.count, float(lr), beta1, beta2, eps, weight_decay, maximize,
            rule, alpha, grad_scale, found_inf, point, sparse_decay,
        )  # fmt: skip
        return
    if impl is None and _step.reference_instead(params, importances, seed):
        impl = "reference"
    op = OP_TENSOR_LR if isinstance(lr, torch.Tensor) else OP
    op(
        params, grads, exp_avgs, exp_avg_sqs, max_exp_avg_sqs, importances, masks, steps,
        lr=lr, beta1=beta1, beta2=beta2, eps=eps, weight_decay=weight_decay, amsgrad=amsgrad,
        maximize=maximize, rule=rule, alpha=alpha, grad_scale=grad_scale, found_inf=found_inf,
        seed=seed, point=point, sparse_decay=sparse_decay, impl=impl,
    )  # fmt: skip
