"""Other dense products that torch has: MKL with a packed weight, dynamic int8, and bfloat16."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from bench.peers.adapter import Adapter, Job, Stack, each


def no_packed(threads: int) -> str | None:
    """Why MKL's packed product is not there, or None."""
    if not torch.backends.mkl.is_available() or not hasattr(torch.ops.mkl, "_mkl_linear"):
        return "this torch has no torch.ops.mkl._mkl_linear"
    return None


def build_packed(job: Job) -> Stack:
    """``torch.ops.mkl._mkl_linear``: what inductor's freezing calls."""
    tokens = job.x.shape[0]

    def call(weight: Tensor) -> Callable[[], Any]:
        packed = torch.ops.mkl._mkl_reorder_linear_weight(weight, tokens)
        return lambda: torch.ops.mkl._mkl_linear(job.x, packed, weight, None, tokens)

    return each([call(weight) for weight in job.layers])


def no_int8(threads: int) -> str | None:
    """Why torch's dynamic int8 linear is not there, or None."""
    if not hasattr(torch.ao.quantization, "quantize_dynamic"):
        return "this torch has no torch.ao.quantization.quantize_dynamic"
    engine = torch.backends.quantized.engine
    return "this torch has no engine for quantised operators" if engine == "none" else None


def build_int8(job: Job) -> Stack:
    """``torch.ao.quantization.quantize_dynamic`` of ``nn.Linear``: int8 weights and activations, float32 outside."""

    def quantized(weight: Tensor) -> nn.Module:
        linear = nn.Linear(weight.shape[1], weight.shape[0], bias=False, device="meta")
        linear.weight = nn.Parameter(weight, requires_grad=False)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # torch announces that this moves to torchao
            model = torch.ao.quantization.quantize_dynamic(
                nn.Sequential(linear), {nn.Linear}, torch.qint8
            )
        return model[0]

    modules = [quantized(weight) for weight in job.layers]
    return each([lambda m=module: m(job.x) for module in modules])


def build_bf16(job: Job) -> Stack:
    """``F.linear`` of bfloat16 by bfloat16."""
    x = job.x.bfloat16()
    weights = [weight.bfloat16() for weight in job.layers]
    stack = each([lambda w=weight: F.linear(x, w) for weight in weights])
    return Stack(stack.run, lambda: stack.rows().float())


MKL_PACKED = Adapter("MKL packed dense", "dense", build_packed, no_packed)
INT8_DYNAMIC = Adapter("torch int8 dynamic", "dense", build_int8, no_int8, "int8", error=0.06)
BF16 = Adapter("torch bf16 dense", "dense", build_bf16, precision="bf16", error=0.02)
