"""Sparse linear layers on the GPU: every shape, number of tokens and pattern against dense cuBLAS and torch's own."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from bench.gpu import contenders, timing
from evoprune_kernels import measure, ops

SHAPES = ((768, 768), (3072, 768), (768, 3072), (4096, 4096), (11008, 4096))
TOKENS = (1, 16, 128, 512, 2048, 8192)
DENSE = "dense cuBLAS"
OURS = "ours"


def patterns() -> list[tuple[str, float]]:
    """``(pattern, density)`` of every row of the table."""
    blocks = [(f"block:{edge}x{edge}", d) for edge in (32, 64, 128) for d in (0.5, 0.25, 0.1)]
    return [("2:4", 0.5), *blocks, ("unstructured", 0.5), ("unstructured", 0.2)]


def problems(quick: bool) -> list[tuple[tuple[int, int], int, str, float, torch.dtype]]:
    """``(shape, tokens, pattern, density, dtype)``; bitmasks only where they are meant for, at few tokens."""
    if quick:
        return [
            ((128, 256), 4, pattern, density, torch.bfloat16)
            for pattern, density in (("2:4", 0.5), ("block:64x64", 0.5), ("unstructured", 0.5))
        ]
    return [
        (shape, tokens, pattern, density, torch.bfloat16)
        for shape in SHAPES
        for tokens in TOKENS
        for pattern, density in patterns()
        if pattern != "unstructured" or tokens <= 16
    ]


def pruned(shape: tuple[int, int], pattern: str, density: float, dtype: torch.dtype) -> Tensor:
    """A random weight [N, K] with the zeros of its pattern, kept by the best scores."""
    weight = torch.randn(shape)
    scores = torch.rand(shape)
    if pattern == "2:4":
        mask = ops.select_nm(scores, 2, 4)
    elif pattern == "unstructured":
        mask = ops.select_topk(scores, density)
    else:
        rows, columns = map(int, pattern.removeprefix("block:").split("x"))
        mask = ops.select_block(scores, rows, columns, density)
    return (weight * mask).to(dtype)


def _makers(
    weights: list[Tensor], x: Tensor, pattern: str, device: str
) -> dict[str, Callable[[], contenders.Layers]]:
    makers = {
        DENSE: lambda: contenders.dense(weights),
        OURS: lambda: contenders.ours(weights, pattern, device),
    }
    if pattern == "2:4":
        makers["torch CUTLASS 2:4"] = lambda: contenders.cutlass(weights)
        makers["torch cuSPARSELt 2:4"] = lambda: contenders.cusparselt(weights, x)
    elif pattern.startswith("block"):
        edge = int(pattern.rpartition("x")[2])
        makers["torch BSR"] = lambda: contenders.bsr(weights, edge)
    return makers


def cell(
    problem: tuple[tuple[int, int], int, str, float, torch.dtype],
    device: str,
    rounds: int,
    seconds: float,
) -> dict[str, Any]:
    """One problem: times of every contender, their ratio to dense, and who was left out and why."""
    shape, tokens, pattern, density, dtype = problem
    torch.manual_seed(0)
    weight = pruned(shape, pattern, density, dtype).to(device)
    nbytes = weight.nbytes
    count = max(1, min(64, -(-timing.cold_bytes(device) // nbytes)))
    weights = [weight, *(weight.clone() for _ in range(count - 1))]
    x = torch.randn(tokens, shape[1], device=device).to(dtype)
    truth = x.double() @ weight.double().t()
    calls, left_out = contenders.build(_makers(weights, x, pattern, device), x, truth)
    graphs: dict[str, Callable[[], object]] = {}
    for name, call in calls.items():
        try:
            graphs[name] = timing.graphed(call, device)
        except Exception as failure:  # a library that cannot be captured is no contender here
            left_out[name] = f"no CUDA graph: {str(failure).splitlines()[0][:200]}"
    result: dict[str, Any] = {
        "shape": list(shape), "tokens": tokens, "pattern": pattern, "density": density,
        "dtype": str(dtype)[6:], "layers": count, "left_out": left_out,
    }  # fmt: skip
    if DENSE not in graphs:
        return result
    samples = measure.interleave(
        measure.add_control(graphs, DENSE),
        rounds=rounds,
        max_seconds=seconds,
        min_sample=timing.SAMPLE_SECONDS,
    )
    result["noise"] = samples.noise(DENSE)
    result["contenders"] = {
        name: {
            "seconds_per_layer": samples.timing(name).median / count,
            "time": samples.timing(name).to_dict(),
            "over_dense": samples.ratio(DENSE, name).to_dict(),
        }
        for name in graphs
    }
    return result


def row(result: dict[str, Any]) -> list[str]:
    """A line of the table: the problem, dense in microseconds, and every speed-up."""
    found = result.get("contenders", {})
    size = f"{result['shape'][0]}x{result['shape'][1]} @ {result['tokens']}"
    name = f"{result['pattern']} {1 - result['density']:.0%}"
    if not found:
        return [size, name, "-", "-", "; ".join(result["left_out"].values())]
    others = [
        f"{other} {entry['over_dense']['median']:.2f}"
        for other, entry in found.items()
        if other not in (DENSE, OURS)
    ]
    ours = f"{found[OURS]['over_dense']['median']:.2f}" if OURS in found else "-"
    micro = f"{1e6 * found[DENSE]['seconds_per_layer']:.1f}"
    return [size, name, micro, ours, ", ".join(others) or "-"]
