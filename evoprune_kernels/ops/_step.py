"""What the optimizer-step ops share: the checks of their tensor lists, and the parts of their references."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from evoprune_kernels._check import check
from evoprune_kernels.importance import KERNEL_RULES
from evoprune_kernels.ops import _philox

#: rules without a state: the fused step has nothing to do for them
STATELESS = ("none", "magnitude")
RULE_NAMES = (*STATELESS, *KERNEL_RULES)
POINTS = ("pre", "post")
#: dtypes of parameters that the kernels take; the reference takes every floating one
KERNEL_DTYPES = (torch.float32, torch.bfloat16)


def check_lists(
    params: Sequence[Tensor], required: Mapping[str, Sequence[Tensor]], **optional: Sequence[Tensor]
) -> None:
    """Raise ``ValueError`` unless every list has one tensor a parameter, or, if optional, none."""
    for name, tensors in required.items():
        check(
            len(tensors) == len(params),
            f"expected {len(params)} {name}, one a parameter, got {len(tensors)}",
        )
    for name, tensors in optional.items():
        check(
            len(tensors) in (0, len(params)),
            f"expected {len(params)} {name}, one a parameter, or none, got {len(tensors)}",
        )


def check_options(
    params: Sequence[Tensor], importances: Sequence[Tensor], masks: Sequence[Tensor], *,
    rule: str, point: str, alpha: float, sparse_decay: float,
) -> None:  # fmt: skip
    """Raise ``ValueError`` unless the options are known and in range, and have the tensors they need."""
    check(rule in RULE_NAMES, f"expected rule in {RULE_NAMES}, got {rule!r}")
    check(point in ("", *POINTS), f"expected point in {POINTS} or '', got {point!r}")
    if not 0 <= alpha <= 1:  # and not check(): a message of a number is nothing that can be traced
        raise ValueError(f"expected 0 <= alpha <= 1, got {alpha}")
    if keeps_state(rule) and len(importances) != len(params):
        raise ValueError(
            f"rule {rule!r} needs {len(params)} importances, one a parameter, got {len(importances)}"
        )
    if not 0 <= sparse_decay < math.inf:
        raise ValueError(f"expected sparse_decay >= 0 and finite, got {sparse_decay}")
    if sparse_decay != 0 and len(masks) != len(params):
        raise ValueError(
            f"sparse_decay={sparse_decay} needs {len(params)} masks, one a parameter, got {len(masks)}"
        )


def check_importances(importances: Sequence[Tensor], seed: int | None) -> None:
    """Raise ``ValueError`` unless every state can hold a running average.

    Rounded to nearest, bf16 loses it: late in training ``alpha * (x - avg)`` is below half a unit in its last place,
    and the average stops where it is. With a seed it is rounded randomly, and moves on average.
    """
    for i, importance in enumerate(importances):
        if importance.dtype == torch.bfloat16 and seed is None:
            raise ValueError(
                f"importances[{i}] is torch.bfloat16, which needs a seed (rounded to nearest, a running average in it"
                " stops moving), got seed=None"
            )
        if importance.dtype not in (torch.float32, torch.float64, torch.bfloat16):
            raise ValueError(
                f"expected importances[{i}] of torch.float32, or torch.bfloat16 with a seed, got {importance.dtype}"
            )


def check_shapes(params: Sequence[Tensor], **lists: Sequence[Tensor]) -> None:
    """Raise ``ValueError`` unless every tensor has the shape of its parameter; empty lists pass."""
    for name, tensors in lists.items():
        for i, (tensor, param) in enumerate(zip(tensors, params, strict=False)):
            if tensor.shape != param.shape:
                raise ValueError(
                    f"{name}[{i}] has shape {tuple(tensor.shape)}, its parameter {tuple(param.shape)}"
                )


def check_states(steps: Sequence[Tensor], importances: Sequence[Tensor], seed: int | None) -> None:
    """Raise ``ValueError`` unless every step is one fp32 number and every importance can hold a running average."""
    check_importances(importances, seed)
    for i, step in enumerate(steps):
        if step.numel() != 1 or step.dtype != torch.float32:
            raise ValueError(
                f"expected steps[{i}] of 1 element and torch.float32, got {step.numel()} and {step.dtype}"
            )


def keeps_state(rule: str) -> bool:
    """Whether the op has an importance to update."""
    return rule in KERNEL_RULES


def moving_rule(rule: str, lr: float | Tensor) -> str:
    """The rule whose importance a kernel advances, or "none"; whether a tensor lr is 0 is for the kernel to see."""
    moves = keeps_state(rule) and (isinstance(lr, Tensor) or lr != 0)
    return rule if moves else "none"


def weight_seen(rule: str, point: str) -> str:
    """Which weight the importance looks at, as csrc/core/step_rule.h has it: "before", "updated" or "stored"."""
    if not keeps_state(rule):
        return "stored"
    if (point or KERNEL_RULES[rule].default_point) == "pre":
        return "before"
    return "updated" if KERNEL_RULES[rule].uses_gradient else "stored"


def kernel_fits(params: Sequence[Tensor]) -> bool:
    """Whether the C++ kernels take these parameters' dtypes."""
    return all(p.dtype in KERNEL_DTYPES for p in params)


def reference_instead(
    params: Sequence[Tensor], importances: Sequence[Tensor], seed: int | None
) -> bool:
    """Whether the call is for the reference: other dtypes than the kernels', or a seed, which the CPU kernels lack."""
    return (
        not kernel_fits(params)
        or any(t.dtype != torch.float32 for t in importances)
        or (seed is not None and all(p.is_cpu for p in params))
    )


def skipped(found_inf: Tensor | None) -> bool:
    """Whether the gradient scaler found an overflow; every value but 0 says so, a sum over devices included."""
    return found_inf is not None and found_inf.item() != 0


def math_dtype(param: Tensor) -> torch.dtype:
    """fp32, or fp64 for fp64 parameters."""
    return torch.promote_types(param.dtype, torch.float32)


def get_gradient(grad: Tensor, param: Tensor, grad_scale: Tensor | None, maximize: bool) -> Tensor:
    """``grad / grad_scale`` in the dtype of the math, also written back to ``grad``; negated to ``maximize``."""
    g = grad.to(math_dtype(param))
    if grad_scale is not None:
        g = g / grad_scale.to(g.dtype).reshape(())  # one element of any shape
        grad.copy_(g)
    return -g if maximize else g


def decay_masked(g: Tensor, param: Tensor, mask: Tensor | None, sparse_decay: float) -> Tensor:
    """What the moments see of a gradient: ``g + sparse_decay * w`` where the mask is False."""
    if sparse_decay == 0 or mask is None:
        return g
    return torch.where(mask, g, g + sparse_decay * param.to(g.dtype))


class Rounding:
    """How results are stored: nearest even, or, in bf16 tensors and with a seed, randomly (``_philox``)."""

    def __init__(self, seed: int | None, tensor: int, step: float) -> None:
        self._seed, self._tensor, self._step = seed, tensor, int(step)
        self._random: dict[str, Tensor] = {}

    def store(self, slot: str, target: Tensor, value: Tensor) -> None:
        """Write ``value`` to ``target``, one of ``_philox.SLOTS``."""
        if self._seed is not None and target.dtype == torch.bfloat16:
            if slot not in self._random:
                self._random |= _philox.step_random(
                    target, seed=self._seed, tensor=self._tensor, step=self._step, slot=slot
                )
            value = _philox.round_randomly_to_bf16(value, self._random[slot])
        target.copy_(value)


def write_weight(
    param: Tensor, new: Tensor, gradient: Tensor, *, mask: Tensor | None, sparse_decay: float,
    importance: Tensor | None, rule: str, point: str, alpha: float, rounding: Rounding,
) -> None:  # fmt: skip
    """Store the new weight, +0.0 where the mask is False (unless it decays), and advance the importance."""
    averages = importance is not None and keeps_state(rule)
    seen = weight_seen(rule, point) if averages else "stored"
    weight = param
    if seen == "before":
        weight = param.clone()
    rounding.store("param", param, new)
    if seen == "updated":
        weight = param.clone()
    if mask is not None and sparse_decay == 0:
        param.masked_fill_(~mask, 0.0)
    if averages and importance is not None:
        state = importance.to(torch.promote_types(importance.dtype, torch.float32))
        KERNEL_RULES[rule].update(state, weight=weight, grad=gradient, alpha=alpha)
        if state is not importance:
            rounding.store("importance", importance, state)
