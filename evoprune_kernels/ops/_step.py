"""What the optimizer-step ops share: the checks of their tensor lists, and the parts of their references."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from evoprune_kernels._check import check
from evoprune_kernels.importance import RULES
from evoprune_kernels.ops import _philox

NO_RULE = "none"
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


def check_rule(
    rule: str, alpha: float, params: Sequence[Tensor], importances: Sequence[Tensor]
) -> None:
    """Raise ``ValueError`` unless the rule is known and has the state it needs."""
    names = (NO_RULE, *RULES)
    check(rule in names, f"expected rule in {names}, got {rule!r}")
    check(0 <= alpha <= 1, f"expected 0 <= alpha <= 1, got {alpha}")
    if keeps_state(rule) and len(importances) != len(params):
        raise ValueError(
            f"rule {rule!r} needs {len(params)} importances, one a parameter, got {len(importances)}"
        )


def check_shapes(params: Sequence[Tensor], **lists: Sequence[Tensor]) -> None:
    """Raise ``ValueError`` unless every tensor has the shape of its parameter; empty lists pass."""
    for name, tensors in lists.items():
        for i, (tensor, param) in enumerate(zip(tensors, params, strict=False)):
            if tensor.shape != param.shape:
                raise ValueError(
                    f"{name}[{i}] has shape {tuple(tensor.shape)}, its parameter {tuple(param.shape)}"
                )


def check_steps(steps: Sequence[Tensor]) -> None:
    """Raise ``ValueError`` unless every step is one fp32 number."""
    for i, step in enumerate(steps):
        if step.numel() != 1 or step.dtype != torch.float32:
            raise ValueError(
                f"expected steps[{i}] of 1 element and torch.float32, got {step.numel()} and {step.dtype}"
            )


def keeps_state(rule: str) -> bool:
    """Whether the op has an importance to update."""
    return rule != NO_RULE and RULES[rule].has_state


def kernel_fits(params: Sequence[Tensor]) -> bool:
    """Whether the C++ kernels take these parameters' dtypes."""
    return all(p.dtype in KERNEL_DTYPES for p in params)


def reference_instead(params: Sequence[Tensor], seed: int | None) -> bool:
    """Whether the call is for the reference: other dtypes than the kernels', or a seed, which the CPU kernels lack."""
    return not kernel_fits(params) or (seed is not None and all(p.is_cpu for p in params))


def skipped(found_inf: Tensor | None) -> bool:
    """Whether the gradient scaler found an overflow; every value but 0 says so, a sum over devices included."""
    return found_inf is not None and found_inf.item() != 0


def math_dtype(param: Tensor) -> torch.dtype:
    """fp32, or fp64 for fp64 parameters."""
    return torch.promote_types(param.dtype, torch.float32)


def unscaled_gradient(grad: Tensor, param: Tensor, grad_scale: Tensor | None) -> Tensor:
    """``grad / grad_scale`` in the dtype of the math, also written back to ``grad``."""
    g = grad.to(math_dtype(param))
    if grad_scale is not None:
        g = g / grad_scale.to(g.dtype).reshape(())  # one element of any shape
        grad.copy_(g)
    return g


class Rounding:
    """How results are stored: nearest even, or, in bf16 tensors and with a seed, randomly (``_philox``)."""

    def __init__(self, param: Tensor, seed: int | None, tensor: int, step: float) -> None:
        self._random: Mapping[str, Tensor] | None = None
        if seed is not None and param.dtype == torch.bfloat16:
            self._random = _philox.step_random(param, seed=seed, tensor=tensor, step=int(step))

    def store(self, slot: str, target: Tensor, value: Tensor) -> None:
        """Write ``value`` to ``target``, one of ``_philox.SLOTS``."""
        if self._random is not None and target.dtype == torch.bfloat16:
            value = _philox.round_randomly_to_bf16(value, self._random[slot])
        target.copy_(value)


def write_weight(
    param: Tensor, new: Tensor, gradient: Tensor, *, mask: Tensor | None, importance: Tensor | None,
    rule: str, alpha: float, rounding: Rounding,
) -> None:  # fmt: skip
    """Store the new weight, +0.0 where the mask is False, and advance the importance."""
    old = param.to(gradient.dtype, copy=True)
    rounding.store("param", param, new)
    if mask is not None:
        param.masked_fill_(~mask, 0.0)
    if importance is not None and keeps_state(rule):
        RULES[rule].update(importance, old=old, new=param, grad=gradient, alpha=alpha)
