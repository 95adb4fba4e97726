"""``adamw_step_`` in Triton: AdamW, importance and mask of a whole list of tensors; two launches for any number.

``m = lerp(m, g, 1 - beta1)``; ``v = beta2 v + (1 - beta2) g^2``;
``w' = (1 - lr decay) w - lr / (1 - beta1^t) m / (sqrt(v) / sqrt(1 - beta2^t) + eps)``, +0.0 where not mask

::

    adamw_prepare_kernel   64 tensors a program    step += 1; lr / (1 - beta1^t) and sqrt(1 - beta2^t), in fp64
    adamw_step_kernel      1024 elements a program, of the tensor that a bisection of the pointer table finds

Every element is read once and written once: bound by memory, 16 to 31 bytes an element in fp32. fp32 math, stored once.
Deterministic: every element is computed on its own. ``found_inf`` is read on the device: nothing waits.
With a seed bf16 is rounded randomly by the bits of csrc/core/philox.h, one evaluation for two elements.
Table: ``ops/_step_table.py``. Source: Loshchilov and Hutter, "Decoupled Weight Decay Regularization", ICLR 2019.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from evoprune_kernels.ops import _step, _step_table
from evoprune_kernels.ops.triton_impl import (
    FIELDS,
    FIRST_CHUNK,
    NUMEL,
    STEP,
    TYPES,
    average,
    decay_masked,
    draw,
    find_tensor,
    get_gradient,
    number_at,
    power,
    put_weight,
    rounded,
    tensor_at,
)

#: tensors of a program of the first kernel
TENSORS = 64


@triton.jit(do_not_specialize=["count"])
def adamw_prepare_kernel(
    table_ptr, factors_ptr, lr_ptr, found_ptr, count,
    TENSOR_LR: tl.constexpr, HAS_FOUND: tl.constexpr, TENSORS: tl.constexpr,
):  # fmt: skip
    i = tl.program_id(0) * TENSORS + tl.arange(0, TENSORS)
    inside = i < count
    go = inside
    if HAS_FOUND:
        go = inside & (tl.load(found_ptr + i * 0, mask=inside, other=0.0) == 0)
    steps = tl.load(table_ptr + i * FIELDS + STEP, mask=inside, other=0)
    step_ptr = steps.to(tl.pointer_type(tl.float32))
    t = tl.load(step_ptr, mask=inside, other=0.0) + 1.0
    tl.store(step_ptr, t, mask=go)
    lr = tl.load(lr_ptr).to(tl.float64) if TENSOR_LR else number_at(table_ptr, count, 0)
    whole, zeros = t.to(tl.int32), t.to(tl.float64) * 0.0
    correction1 = 1.0 - power(zeros + number_at(table_ptr, count, 1), whole)
    correction2 = 1.0 - power(zeros + number_at(table_ptr, count, 2), whole)
    decay = zeros + (1.0 - lr * number_at(table_ptr, count, 3))
    tl.store(factors_ptr + i * 3, ((zeros + lr) / correction1).to(tl.float32), mask=inside)
    tl.store(factors_ptr + i * 3 + 1, tl.sqrt_rn(correction2.to(tl.float32)), mask=inside)
    tl.store(factors_ptr + i * 3 + 2, decay.to(tl.float32), mask=inside)


@triton.jit(do_not_specialize=["count"])
def adamw_step_kernel(
    table_ptr, factors_ptr, lr_ptr, scale_ptr, found_ptr, count,
    moment_factor, beta2, square_weight, eps, sign, alpha_factor, sparse_decay,
    P: tl.constexpr, S: tl.constexpr, AMSGRAD: tl.constexpr, TENSOR_LR: tl.constexpr,
    HAS_SCALE: tl.constexpr, HAS_FOUND: tl.constexpr, MASKS: tl.constexpr, RULE: tl.constexpr,
    SEEN: tl.constexpr, MOMENT_FROM_STATE: tl.constexpr, FROM_STATE: tl.constexpr,
    ALIGNED: tl.constexpr, SEEDED: tl.constexpr, CHUNK: tl.constexpr,
):  # fmt: skip
    if HAS_FOUND:  # noqa: SIM102 (a constant: without a scaler nothing is read)
        if tl.load(found_ptr) != 0:
            return
    chunk = tl.program_id(0).to(tl.int64)
    i = find_tensor(table_ptr, chunk, count)
    row_ptr = table_ptr + i * FIELDS
    first = (chunk - tl.load(row_ptr + FIRST_CHUNK)) * CHUNK
    at = first + tl.arange(0, CHUNK)
    inside = at < tl.load(row_ptr + NUMEL)
    step_size = tl.load(factors_ptr + i * 3)
    root = tl.load(factors_ptr + i * 3 + 1)
    decay = tl.load(factors_ptr + i * 3 + 2)
    a, b = draw(table_ptr, count, row_ptr, first, CHUNK, SEEDED)

    param_ptr = tensor_at(row_ptr, 0, P, ALIGNED)
    grad_ptr = tensor_at(row_ptr, 1, P, ALIGNED)
    gradient = get_gradient(grad_ptr, at, inside, sign, scale_ptr, HAS_SCALE)
    old = tl.load(param_ptr + at, mask=inside, other=0.0).to(tl.float32)
    g = decay_masked(row_ptr, at, inside, old, gradient, sparse_decay, MASKS, ALIGNED)

    first_ptr = tensor_at(row_ptr, 2, S, ALIGNED) + at
    m = tl.load(first_ptr, mask=inside, other=0.0).to(tl.float32)
    m = average(m, g, moment_factor, MOMENT_FROM_STATE)
    tl.store(first_ptr, rounded(m, S, a, 1, SEEDED), mask=inside)

    second_ptr = tensor_at(row_ptr, 3, S, ALIGNED) + at
    v = tl.load(second_ptr, mask=inside, other=0.0).to(tl.float32) * beta2 + square_weight * g * g
    tl.store(second_ptr, rounded(v, S, b, 0, SEEDED), mask=inside)
    if AMSGRAD:
        largest_ptr = tensor_at(row_ptr, 4, S, ALIGNED) + at
        largest = tl.load(largest_ptr, mask=inside, other=0.0).to(tl.float32)
        v = tl.where((largest > v) | (largest != largest), largest, v)  # NaN of either stays
        tl.store(largest_ptr, rounded(v, S, b, 1, SEEDED), mask=inside)

    denominator = tl.div_rn(tl.sqrt_rn(v), root) + eps
    new = old * decay - tl.div_rn(step_size * m, denominator)
    put_weight(
        row_ptr, param_ptr, lr_ptr, at, inside, old, new, gradient, alpha_factor, a,
        TENSOR_LR, MASKS, RULE, SEEN, FROM_STATE, ALIGNED, SEEDED,
    )  # fmt: skip


def adamw_step_unfit(*lists: Sequence[Tensor], **numbers: Any) -> str | None:
    """Why the kernels cannot run, or None."""
    return _step_table.unfit(
        lists, [numbers[k] for k in ("lr", "grad_scale", "found_inf") if k in numbers]
    )


def adamw_step_triton(
    *lists: Sequence[Tensor], lr: float | Tensor, beta1: float, beta2: float, eps: float,
    weight_decay: float, amsgrad: bool, maximize: bool, rule: str, alpha: float,
    grad_scale: Tensor | None = None, found_inf: Tensor | None = None,
    seed: int | None = None, point: str = "", sparse_decay: float = 0.0,
) -> None:  # fmt: skip
    """As ``adamw_step_reference``; two launches for each combination of dtypes."""
    _step.check_options(
        lists[0], lists[-3], lists[-2], rule=rule, point=point, alpha=alpha,
        sparse_decay=sparse_decay,
    )  # fmt: skip
    numbers = (0.0 if isinstance(lr, Tensor) else lr, beta1, beta2, weight_decay)
    flags = {
        "TENSOR_LR": isinstance(lr, Tensor), "HAS_FOUND": found_inf is not None,
        "enable_fp_fusion": True,
    }  # fmt: skip
    _step_table.advance_empty(lists, found_inf)
    first_weight = 1 - beta1
    with _step_table.row_by_row(lists, seed) as rows:
        for table in _step_table.tables(rows, numbers, seed):
            factors = torch.empty(table.count, 3, device=table.rows.device)
            rate = lr if isinstance(lr, Tensor) else factors
            found = factors if found_inf is None else found_inf
            adamw_prepare_kernel[(triton.cdiv(table.count, TENSORS),)](
                table.rows, factors, rate, found, table.count, TENSORS=TENSORS, **flags,
            )  # fmt: skip
            adamw_step_kernel[(table.chunks,)](
                table.rows, factors, rate, factors if grad_scale is None else grad_scale, found, table.count,
                first_weight if first_weight < 0.5 else first_weight - 1, beta2, 1 - beta2, eps,
                -1.0 if maximize else 1.0, alpha if alpha < 0.5 else alpha - 1, float(sparse_decay),
                P=TYPES[table.param_dtype], S=TYPES[table.state_dtype], AMSGRAD=amsgrad,
                HAS_SCALE=grad_scale is not None, MASKS=_step_table.use_of_masks(lists, sparse_decay),
                RULE=_step.moving_rule(rule, lr),
                SEEN=_step.weight_seen(rule, point), FROM_STATE=alpha < 0.5,
                MOMENT_FROM_STATE=first_weight < 0.5, ALIGNED=table.aligned, SEEDED=table.seeded,
                CHUNK=_step_table.CHUNK, **flags,
            )  # fmt: skip
