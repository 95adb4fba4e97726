"""The short way of an optimizer step to its kernel, for lists of plain tensors.

The dispatcher walks a list argument about ten times. For a thousand small tensors in eight lists that takes longer than
the step itself. ``_native`` reads the same tensors in one walk (``csrc/module_steps.cpp``) and checks all that the op
checks; the kernel then gets what it found. ``collect`` returns None wherever the dispatcher has something to add: then
the op is called as usual, which also finds the words for what is wrong. Nothing is kept from one step to the next:
parameters, gradients and states may be replaced at any time.
"""

from __future__ import annotations

import functools
from typing import Any

import torch
from torch import Tensor

from evoprune_kernels import _ext, _select


def collect(
    name: str, impl: str | None, lists: tuple[Any, ...], lr: Any, *scalars: Tensor | None
) -> Any | None:
    """The entries that ``evoprune_raw::<name>entries`` steps, or None: call the op.

    Args:
        name: the op.
        impl: what the caller insists on.
        lists: params, grads, first moments, second moments, largest second moments, importances, masks, steps;
            of the same length, or empty. Versions of all but the masks are advanced.
        lr: a number or a tensor.
        scalars: grad_scale and found_inf.
    """
    if torch.compiler.is_compiling():  # first: what follows cannot be traced
        return None
    reader = _reader()
    if reader is None or intercepted():
        return None
    if impl not in (None, _select.CPU) or name in _select.FORCED:
        return None
    if any(type(s) is not Tensor for s in (lr, *scalars) if isinstance(s, Tensor)):
        return None
    if isinstance(lr, Tensor) and (lr.numel() != 1 or lr.device.type != "cpu"):
        return None
    return reader.collect(lists)


def intercepted() -> bool:
    """Whether something watches the calls of ops: a mode, a transform of functorch, a tracer, a profiler."""
    return (
        torch._C._len_torch_dispatch_stack() > 0
        or torch._C._len_torch_function_stack() > 0
        or torch._C._functorch.peek_interpreter_stack() is not None
        or torch._C._get_tracing_state() is not None
        or torch._C._autograd._profiler_enabled()
    )


@functools.cache
def _reader() -> Any | None:
    """The reader; None where a library is missing or torch does not publish its tensors (2.10 does)."""
    exchange = getattr(torch.Tensor, "__dlpack_c_exchange_api__", None)
    if _ext.native is None or not _ext.cpu_loaded() or exchange is None:
        return None
    try:
        return _ext.native.StepReader(
            exchange, Tensor, torch.nn.Parameter, Tensor.is_neg, torch._C._increment_version
        )
    except ValueError as error:  # another version of the exchange: the dispatcher serves as well
        _ext.reasons["StepReader"] = str(error)
        return None
