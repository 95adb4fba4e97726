"""What ``bench optim`` measures beside its main table: many small tensors, other steps, the stream mix's bandwidth.

Small: a thousand tensors of 1k to 10k fp32 elements (5.5 M parameters, 200 MB with all states, beyond the caches)
against eight tensors of the same total. "op" is one call on lists, "optimizer" is ``.step()`` of a training loop.
"""

from __future__ import annotations

import functools
import random
import statistics
import time
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

import evoprune_kernels as ek
from bench import roofline
from evoprune_kernels import measure, ops

ALPHA = 0.02
STEPS = 8  # of which the fastest counts beside the probe's fastest
PROBE_SECONDS = 1.0
MIX_BYTES = 37  # w, m, v, importance read and written, g and the mask read
LEAST_OF_MIX = 0.9
MOST_SMALL_OVER_BIG = 1.2
Contenders = dict[str, Callable[[], object]]


def tensors(sizes: list[int], dtype: torch.dtype = torch.float32) -> tuple[list[Tensor], ...]:
    """Weights, gradients and masks of these sizes."""
    generator = torch.Generator().manual_seed(0)
    weights = [(torch.randn(n, 1, generator=generator) * 0.02).to(dtype) for n in sizes]
    grads = [(torch.randn(n, 1, generator=generator) * 1e-3).to(dtype) for n in sizes]
    masks = [torch.rand(n, 1, generator=generator) < 0.5 for n in sizes]
    return weights, grads, masks


def zeros(like: list[Tensor], dtype: torch.dtype) -> list[Tensor]:
    """Fresh states."""
    return [torch.zeros_like(t, dtype=dtype) for t in like]


def our_adamw(
    sizes: list[int], dtype: torch.dtype = torch.float32, state: torch.dtype = torch.float32
) -> Callable[[], object]:
    """``ops.adamw_step_`` with evolution and masks."""
    weights, grads, masks = tensors(sizes, dtype)
    lists = (weights, grads, zeros(weights, state), zeros(weights, state), [],
             zeros(weights, torch.float32), masks, [torch.tensor(0.0) for _ in sizes])  # fmt: skip
    options = {"lr": 1e-3, "beta1": 0.9, "beta2": 0.999, "eps": 1e-8, "weight_decay": 0.01}
    return lambda: ops.adamw_step_(*lists, **options, rule="evolution", alpha=ALPHA)


def torch_adamw(sizes: list[int]) -> Callable[[], object]:
    """``torch._fused_adamw_``: one call on lists, without the optimizer around it."""
    weights, grads, _ = tensors(sizes)
    first, second = zeros(weights, torch.float32), zeros(weights, torch.float32)
    steps = [torch.tensor(1.0) for _ in sizes]
    return lambda: torch._fused_adamw_(
        weights, grads, first, second, [], steps, lr=1e-3, beta1=0.9, beta2=0.999,
        weight_decay=0.01, eps=1e-8, amsgrad=False, maximize=False,
    )  # fmt: skip


def optimizer(
    make: Callable[[list[Tensor]], torch.optim.Optimizer], sizes: list[int], dtype: torch.dtype
) -> Callable[[], object]:
    """``step`` of an optimizer whose parameters have gradients."""
    weights, grads, _ = tensors(sizes, dtype)
    params: list[Tensor] = [torch.nn.Parameter(w) for w in weights]
    for param, grad in zip(params, grads, strict=True):
        param.grad = grad
    return make(params).step


def ours_whole(params: list[Tensor]) -> torch.optim.Optimizer:
    """``ek.optim.AdamW`` in the middle of a run: masks chosen after the first step, importance averaged."""
    config = ek.PruneConfig("unstructured", sparsity=0.5, start=1, every=10**9)
    return ek.optim.AdamW(params, lr=1e-3, prune=config)


def torch_whole(params: list[Tensor]) -> torch.optim.Optimizer:
    """``torch.optim.AdamW(fused=True)``."""
    return torch.optim.AdamW(params, lr=1e-3, fused=True)


def small(rounds: int, seconds: float, count: int = 1000) -> dict[str, Any]:
    """Time per parameter of many small tensors over that of a few big ones, for ours and for torch."""
    generator = random.Random(0)
    few = [generator.randint(1000, 10000) for _ in range(count)]
    total = sum(few)
    sizes = {"small": few, "big": [total // 8] * 8}
    contenders: Contenders = {}
    for which, of in sizes.items():
        contenders[f"ours, op, {which}"] = our_adamw(of)
        contenders[f"ours, optimizer, {which}"] = optimizer(ours_whole, of, torch.float32)
        contenders[f"torch fused, op, {which}"] = torch_adamw(of)
        contenders[f"torch fused, optimizer, {which}"] = optimizer(torch_whole, of, torch.float32)
    contenders = measure.add_control(contenders, "ours, op, big")
    samples = measure.interleave(contenders, rounds=rounds, max_seconds=seconds)
    ratios = {}
    for who in ("ours, op", "ours, optimizer", "torch fused, op", "torch fused, optimizer"):
        ratio = samples.ratio(f"{who}, small", f"{who}, big").to_dict()
        ratios[who] = {
            "ns_per_parameter": {
                w: samples.timing(f"{who}, {w}").median / sum(of) * 1e9 for w, of in sizes.items()
            },
            "small_over_big": ratio,
            "seconds": {w: samples.timing(f"{who}, {w}").to_dict() for w in sizes},
        }
    return {
        "tensors": count,
        "parameters": total,
        "rows": ratios,
        "control": samples.control("ours, op, big").to_dict(),
    }


def others(rounds: int, seconds: float, elements: int, threads: int) -> list[dict[str, Any]]:
    """Steps that the main table leaves out, each against torch's fused one: SGD with momentum, bfloat16."""
    sizes = [elements // 8] * 8
    half, full = torch.bfloat16, torch.float32

    def sgd(params: list[Tensor]) -> torch.optim.Optimizer:
        return torch.optim.SGD(params, lr=1e-3, momentum=0.9, fused=True)

    def our_sgd() -> Callable[[], object]:
        weights, grads, masks = tensors(sizes)
        lists = (weights, grads, zeros(weights, full), zeros(weights, full), masks,
                 [torch.tensor(0.0) for _ in sizes])  # fmt: skip
        options = {"lr": 1e-3, "momentum": 0.9, "rule": "evolution", "alpha": ALPHA}
        return lambda: ops.sgd_step_(*lists, **options)

    jobs: list[tuple[str, str, Callable[[], Contenders]]] = [
        ("SGD with momentum, fp32", "20 and 29",
         lambda: {"torch": optimizer(sgd, sizes, full), "ours": our_sgd()}),
        ("AdamW, bf16, moments bf16", "14 and 23",
         lambda: {"torch": optimizer(torch_whole, sizes, half), "ours": our_adamw(sizes, half, half)}),
        ("AdamW, bf16, ours with fp32 moments", "14 and 31",
         lambda: {"torch": optimizer(torch_whole, sizes, half), "ours": our_adamw(sizes, half, full)}),
    ]  # fmt: skip
    rows = []
    for title, moved, make in jobs:
        contenders = measure.add_control(make(), "torch")
        samples = measure.interleave(contenders, rounds=rounds, max_seconds=seconds / len(jobs))
        rows.append(
            {
                "what": title,
                "bytes_a_parameter": moved,
                "parameters": sum(sizes),
                "threads": threads,
                "seconds": {name: samples.timing(name).to_dict() for name in contenders},
                "ours_over_torch": samples.ratio("ours", "torch").to_dict(),
                "control": samples.control("torch").to_dict(),
            }
        )
    return rows


def two_threads(step: Contenders, rounds: int, seconds: float, theirs: str, ours: str) -> Any:
    """The main pair again with two threads."""
    with measure.threads(2):
        contenders = measure.add_control({name: step[name] for name in (theirs, ours)}, theirs)
        samples = measure.interleave(contenders, rounds=rounds, max_seconds=seconds)
    return {
        "what": "AdamW, fp32",
        "bytes_a_parameter": "28 and 37",
        "threads": 2,
        "seconds": {n: samples.timing(n).to_dict() for n in contenders},
        "ours_over_torch": samples.ratio(ours, theirs).to_dict(),
        "control": samples.control(theirs).to_dict(),
    }


def probe() -> Callable[[int], float] | None:
    """The probe of the stream mix: elements -> bytes a second; None without the native library."""
    if not roofline.available():
        return None
    return functools.partial(roofline.stream_bandwidth, seconds=PROBE_SECONDS)


def seconds_of(call: Callable[[], object]) -> float:
    """How long one call takes."""
    start = time.perf_counter()
    call()
    return time.perf_counter() - start


def bandwidth(
    step: Callable[[], object],
    elements: int,
    measured: Callable[[int], float] | None,
    rounds: int = 5,
) -> dict[str, Any]:
    """The bytes a second of ``step`` over those of its own stream mix (five reads, four writes), in turns.

    The probe reports its fastest pass, so the step's fastest of some is taken as well.

    Args:
        step: one step of ours, with importance and mask.
        elements: how many parameters it has.
        measured: the probe, or None: then only the step's own figure is given.
        rounds: pairs of step and probe.
    """
    ours, mix = [], []
    for _ in range(rounds):
        ours.append(MIX_BYTES * elements / min(seconds_of(step) for _ in range(STEPS)))
        if measured is not None:
            mix.append(measured(elements))
    shares = sorted(a / b for a, b in zip(ours, mix, strict=False))
    return {
        "bytes_a_parameter": MIX_BYTES,
        "step_bytes_a_second": statistics.median(ours),
        "mix_bytes_a_second": statistics.median(mix) if mix else None,
        "share": {
            "median": statistics.median(shares),
            "p20": measure.quantile(shares, 0.2),
            "p80": measure.quantile(shares, 0.8),
        }
        if shares
        else None,
    }
