"""``sgd_step_`` in Triton: SGD, importance and mask of a whole list of tensors; two launches for any number.

``d = g + decay w``; ``b = momentum b + (1 - dampening) d``, at the first step ``b = d``;
``w' = w - lr (d + momentum b)`` with nesterov, else ``w - lr b``; +0.0 where not mask

::

    sgd_prepare_kernel   64 tensors a program    step += 1; whether this is the first; lr
    sgd_step_kernel      1024 elements a program, of the tensor that a bisection of the pointer table finds

Every element is read once and written once: bound by memory, 12 to 25 bytes an element in fp32. fp32 math, stored once.
Deterministic: every element is computed on its own. ``found_inf`` is read on the device: nothing waits.
With a seed bf16 is rounded randomly by the bits of csrc/core/philox.h, one evaluation for two elements.
Table: ``ops/_step_table.py``. Source: the form of ``torch.optim.SGD``, after Sutskever et al., ICML 2013.
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
    decay_masked,
    draw,
    find_tensor,
    get_gradient,
    number_at,
    put_weight,
    rounded,
    tensor_at,
)

#: tensors of a program of the first kernel
TENSORS = 64


@triton.jit(do_not_specialize=["count"])
def sgd_prepare_kernel(
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
    t = tl.load(step_ptr, mask=inside, other=0.0)
    tl.store(step_ptr, t + 1.0, mask=go)
    lr = tl.load(lr_ptr).to(tl.float64) if TENSOR_LR else number_at(table_ptr, count, 0)
    tl.store(factors_ptr + i * 2, (t == 0.0).to(tl.float32), mask=inside)
    tl.store(factors_ptr + i * 2 + 1, t * 0.0 + lr.to(tl.float32), mask=inside)


@triton.jit(do_not_specialize=["count"])
def sgd_step_kernel(
    table_ptr, factors_ptr, lr_ptr, scale_ptr, found_ptr, count,
    momentum, undamped, decay, sign, alpha_factor, sparse_decay,
    P: tl.constexpr, S: tl.constexpr, HAS_MOMENTUM: tl.constexpr, NESTEROV: tl.constexpr,
    HAS_DECAY: tl.constexpr, TENSOR_LR: tl.constexpr, HAS_SCALE: tl.constexpr,
    HAS_FOUND: tl.constexpr, MASKS: tl.constexpr, RULE: tl.constexpr, SEEN: tl.constexpr,
    FROM_STATE: tl.constexpr, ALIGNED: tl.constexpr, SEEDED: tl.constexpr, CHUNK: tl.constexpr,
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
    later = tl.load(factors_ptr + i * 2) == 0.0
    lr = tl.load(factors_ptr + i * 2 + 1)
    a, _ = draw(table_ptr, count, row_ptr, first, CHUNK, SEEDED)

    param_ptr = tensor_at(row_ptr, 0, P, ALIGNED)
    grad_ptr = tensor_at(row_ptr, 1, P, ALIGNED)
    gradient = get_gradient(grad_ptr, at, inside, sign, scale_ptr, HAS_SCALE)
    old = tl.load(param_ptr + at, mask=inside, other=0.0).to(tl.float32)
    g = decay_masked(row_ptr, at, inside, old, gradient, sparse_decay, MASKS, ALIGNED)
    d = g
    if HAS_DECAY:
        d = g + decay * old
    if HAS_MOMENTUM:
        # the first step only writes the buffer, whatever it holds
        buffer_ptr = tensor_at(row_ptr, 2, S, ALIGNED) + at
        b = tl.load(buffer_ptr, mask=inside, other=0.0).to(tl.float32)
        b = tl.where(later, b * momentum + undamped * d, d)
        tl.store(buffer_ptr, rounded(b, S, a, 1, SEEDED), mask=inside)
        d = d + momentum * b if NESTEROV else b
    put_weight(
        row_ptr, param_ptr, lr_ptr, at, inside, old, old - lr * d, gradient, alpha_factor, a,
        TENSOR_LR, MASKS, RULE, SEEN, FROM_STATE, ALIGNED, SEEDED,
    )  # fmt: skip


def _lists(lists: tuple[Sequence[Tensor], ...], momentum: float) -> _step_table.Lists:
    """The lists in the order of the pointer table; buffers count only where there is momentum."""
    params, grads, buffers, importances, masks, steps = lists
    return params, grads, buffers if momentum else [], [], [], importances, masks, steps


def sgd_step_unfit(*lists: Sequence[Tensor], **numbers: Any) -> str | None:
    """Why the kernels cannot run, or None."""
    ones = [numbers.get(k) for k in ("lr", "grad_scale", "found_inf")]
    return _step_table.unfit(_lists(lists, numbers["momentum"]), ones)


def sgd_step_triton(
    *lists: Sequence[Tensor], lr: float | Tensor, momentum: float, dampening: float,
    weight_decay: float, nesterov: bool, maximize: bool, rule: str, alpha: float,
    grad_scale: Tensor | None = None, found_inf: Tensor | None = None,
    seed: int | None = None, point: str = "", sparse_decay: float = 0.0,
) -> None:  # fmt: skip
    """As ``sgd_step_reference``; two launches for each combination of dtypes."""
    _step.check_options(
        lists[0], lists[-3], lists[-2], rule=rule, point=point, alpha=alpha,
        sparse_decay=sparse_decay,
    )  # fmt: skip
    lists = _lists(lists, momentum)
    flags = {
        "TENSOR_LR": isinstance(lr, Tensor), "HAS_FOUND": found_inf is not None,
        "enable_fp_fusion": True,
    }  # fmt: skip
    _step_table.advance_empty(lists, found_inf)
    with _step_table.row_by_row(lists, seed) as rows:
        for table in _step_table.tables(rows, [0.0 if isinstance(lr, Tensor) else lr], seed):
            factors = torch.empty(table.count, 2, device=table.rows.device)
            rate = lr if isinstance(lr, Tensor) else factors
            found = factors if found_inf is None else found_inf
            sgd_prepare_kernel[(triton.cdiv(table.count, TENSORS),)](
                table.rows, factors, rate, found, table.count, TENSORS=TENSORS, **flags,
            )  # fmt: skip
            sgd_step_kernel[(table.chunks,)](
                table.rows, factors, rate, factors if grad_scale is None else grad_scale, found, table.count,
                float(momentum), 1.0 - dampening, float(weight_decay), -1.0 if maximize else 1.0,
                alpha if alpha < 0.5 else alpha - 1, float(sparse_decay),
                P=TYPES[table.param_dtype], S=TYPES[table.state_dtype], HAS_MOMENTUM=momentum != 0,
                NESTEROV=nesterov, HAS_DECAY=weight_decay != 0, HAS_SCALE=grad_scale is not None,
                MASKS=_step_table.use_of_masks(lists, sparse_decay),
                RULE=_step.moving_rule(rule, lr),
                SEEN=_step.weight_seen(rule, point), FROM_STATE=alpha < 0.5,
                ALIGNED=table.aligned, SEEDED=table.seeded, CHUNK=_step_table.CHUNK, **flags,
            )  # fmt: skip
