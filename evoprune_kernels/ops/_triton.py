"""Which ops are written in Triton, and their registration with the dispatcher. Triton itself is imported at first use.

::

    evoprune::<op>          CUDA key    _cuda.so where it has a kernel, else the Triton launcher, else the reference
    evoprune_triton::<op>   CUDA key    the Triton launcher: what ``impl="triton"`` calls, with the same autograd

The launcher of an op is ``<op>_triton`` in ``ops/<folder>/triton_impl.py``; beside it ``<op>_unfit`` says why it cannot
take some arguments. Under the CUDA key of ``evoprune`` such arguments go to the reference; insisted on, they raise.
The choice lies below the dispatcher, so ``torch.compile`` sees one op.
"""

from __future__ import annotations

import functools
import importlib
import warnings
from collections.abc import Callable
from typing import Any

import torch

from evoprune_kernels import _ext, _select
from evoprune_kernels.ops._op import (
    LIBRARY,
    OPS,
    TRITON_OWNS,
    Op,
    first_device,
    register_op,
)

TWIN_NAMESPACE = "evoprune_triton"
TWINS = torch.library.Library(TWIN_NAMESPACE, "DEF")
#: op -> folder of its ``triton_impl.py``
WRITTEN = {
    "adamw_step_": "adamw_step",
    "adamw_step_.tensor_lr": "adamw_step",
    "bitmask_linear": "bitmask_linear",
    "bitmask_pack": "bitmask_pack",
    "bitmask_unpack": "bitmask_pack",
    "block_linear": "block_linear",
    "block_linear_dw": "block_linear",
    "block_linear_dx": "block_linear",
    "channel_gate": "channel_gate",
    "channel_gate_backward": "channel_gate",
    "gate_norm": "gate_norm",
    "gate_norm_backward": "gate_norm",
    "gather_channels": "gather_channels",
    "nm_linear": "nm_linear",
    "nm_pack": "nm_pack",
    "nm_unpack": "nm_pack",
    "scatter_channels": "gather_channels",
    "select_block": "select_block",
    "select_nm": "select_nm",
    "select_topk": "select_topk",
    "select_topk_global": "select_topk_global",
    "sgd_step_": "sgd_step",
    "sgd_step_.tensor_lr": "sgd_step",
    "topk_abs_channels": "topk_channels",
    "topk_channels": "topk_channels",
}


@functools.cache
def implementation(name: str) -> tuple[Callable[..., Any], Callable[..., str | None]]:
    """``(launcher, unfit)`` of an op."""
    module = importlib.import_module(f"evoprune_kernels.ops.{WRITTEN[name]}.triton_impl")
    stem = name.partition(".")[0].rstrip("_")
    return getattr(module, f"{stem}_triton"), getattr(module, f"{stem}_unfit")


def run(op: Op, insist: bool, *args: Any, **kwargs: Any) -> Any:
    """The launcher of ``op``; where it cannot take the arguments the reference, with a warning that says why.

    ``insist``: ``RuntimeError`` instead.
    """
    launcher, unfit = implementation(op.name)
    if why := unfit(*args, **kwargs):
        if insist:
            raise RuntimeError(f"{op.name}: impl='triton' {why}")
        if not torch.compiler.is_compiling():
            warnings.warn(f"{op.name}: plain torch runs, the Triton kernel {why}", stacklevel=2)
        return op.reference(*args, **kwargs)
    device = first_device(args)
    if device.type != "cuda":
        return launcher(*args, **kwargs)
    with torch.cuda.device(device):  # Triton launches on the current device
        return launcher(*args, **kwargs)


def register() -> None:
    """Register every written op, unless there is no Triton; after ``_cuda.so`` is loaded, or is not."""
    if "triton" in _ext.reasons:
        return
    for name in WRITTEN:
        op = OPS[name]
        op.triton.append(register_op(TWINS, op.definition))
        TWINS.impl(name, functools.partial(run, op, True), "CUDA")
        if op.reasons(_select.CUDA):
            LIBRARY.impl(name, functools.partial(run, op, False), "CUDA")
            TRITON_OWNS.add(name)
