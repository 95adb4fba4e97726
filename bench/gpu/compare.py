"""One op's contenders on the same inputs: each is checked, then all are timed over sets of inputs that stay cold.

A contender is bound to a set of inputs once, untimed, and called many times. What fails or is wrong is left out with
its reason. All contenders of a problem are timed in the same way: inside CUDA graphs, or, where one of them cannot be
captured (it waits for the device), as plain calls up to the end of their work on the device.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from bench import report
from bench.gpu import timing
from bench.gpu.contenders import TOLERANCE, relative_error
from evoprune_kernels import measure

OURS = "ours"
REFERENCE = "reference"
MAX_SETS = 64
Inputs = tuple[Any, ...]
Call = Callable[[], Any]


@dataclass(frozen=True)
class Contender:
    """``bind(*inputs)`` gives the call that is timed; ``wrong(output, *inputs)`` says what is wrong, or None."""

    bind: Callable[..., Call]
    wrong: Callable[..., str | None]


@dataclass(frozen=True)
class Problem:
    """What is computed: ``make(generator)`` gives the inputs; ratios are to the contender ``base``."""

    op: str
    size: str
    make: Callable[[torch.Generator], Inputs]
    contenders: Mapping[str, Contender]
    moved: int  # bytes that memory must move for one set of inputs
    base: str = REFERENCE
    waits: str | None = None  # which contender waits for the device and why; None: torch is asked


def forced(device: str) -> str | None:
    """``impl`` of our op: on a GPU it must be the CUDA kernel, never what runs instead of it."""
    return "cuda" if device == "cuda" else None


def exact(truth: Callable[..., Any]) -> Callable[..., str | None]:
    """A check for outputs that have to be, bit for bit, those of ``truth(*inputs)`` on the CPU."""

    def wrong(output: Any, *inputs: Any) -> str | None:
        expected = tensors_of(truth(*(x.cpu() if isinstance(x, Tensor) else x for x in inputs)))
        found = tensors_of(output)
        if len(found) != len(expected):
            return f"{len(found)} tensors, expected {len(expected)}"
        for i, (a, b) in enumerate(zip(found, expected, strict=True)):
            if a.shape != b.shape or a.dtype != b.dtype:
                return (
                    f"tensor {i} is {a.dtype} {tuple(a.shape)}, expected {b.dtype} {tuple(b.shape)}"
                )
            if different := int((a.cpu() != b).sum()):
                return f"tensor {i} differs in {different} of {b.numel()} entries"
        return None

    return wrong


def close(truth: Callable[..., Any], dtype: torch.dtype) -> Callable[..., str | None]:
    """A check against ``truth(*inputs)``, which computes in float64."""

    def wrong(output: Any, *inputs: Any) -> str | None:
        expected = tensors_of(truth(*inputs))
        for a, b in zip(tensors_of(output), expected, strict=True):
            if not (error := relative_error(a, b)) <= TOLERANCE[dtype]:
                return f"wrong by {error:.1e} of the largest value"
        return None

    return wrong


def tensors_of(output: Any) -> list[Tensor]:
    """The tensors of an output, which is one or a sequence."""
    return [output] if isinstance(output, Tensor) else list(output)


def sets_of(inputs: Inputs, device: str) -> list[Inputs]:
    """``inputs`` and as many copies as together exceed the caches."""
    nbytes = sum(x.nbytes for x in inputs if isinstance(x, Tensor))
    count = max(1, min(MAX_SETS, -(-timing.cold_bytes(device) // max(1, nbytes))))
    copies = [
        tuple(x.clone() if isinstance(x, Tensor) else x for x in inputs) for _ in range(count - 1)
    ]
    return [inputs, *copies]


def build(problem: Problem, sets: list[Inputs]) -> tuple[dict[str, Call], dict[str, str]]:
    """The contenders that are right, each over all sets of inputs, and the others with the reason."""
    right: dict[str, Call] = {}
    left_out: dict[str, str] = {}
    for name, contender in problem.contenders.items():
        try:
            calls = [contender.bind(*inputs) for inputs in sets]
            reason = contender.wrong(calls[0](), *sets[0])
        except Exception as failure:  # of any library: its words are the reason
            lines = str(failure).splitlines() or [""]
            reason = f"{type(failure).__name__}: {lines[0][:200]}"
        if reason is None:
            right[name] = _walk(calls)
        else:
            left_out[name] = reason
    return right, left_out


def _walk(calls: list[Call]) -> Call:
    def walk() -> None:
        for call in calls:
            call()

    return walk


def cell(problem: Problem, device: str, rounds: int, seconds: float) -> dict[str, Any]:
    """One problem: how it was timed, times of every contender, ratios to the base, who was left out and why."""
    made = problem.make(torch.Generator().manual_seed(0))
    inputs = tuple(x.to(device) if isinstance(x, Tensor) else x for x in made)
    sets = sets_of(inputs, device)
    calls, left_out = build(problem, sets)
    result: dict[str, Any] = {
        "op": problem.op, "size": problem.size, "sets": len(sets), "base": problem.base,
        "bytes": problem.moved, "left_out": left_out,
    }  # fmt: skip
    if problem.base not in calls:
        return result
    timed, result["timed"] = timing.alike(calls, device, problem.waits)
    samples = measure.interleave(
        measure.add_control(timed, problem.base),
        rounds=rounds,
        max_seconds=seconds,
        min_sample=timing.SAMPLE_SECONDS,
    )
    result["noise"] = samples.noise(problem.base)
    result["contenders"] = {
        name: {
            "seconds": samples.timing(name).median / len(sets),
            "time": samples.timing(name).to_dict(),
            "over_base": samples.ratio(problem.base, name).to_dict(),
            "bytes_a_second": problem.moved * len(sets) / samples.timing(name).median,
        }
        for name in timed
    }
    return result


def row(result: dict[str, Any]) -> list[str]:
    """A line of the table: the problem, ours in microseconds and GB/s, and every ratio to the base."""
    found = result.get("contenders", {})
    name = [result["op"], result["size"]]
    if OURS not in found:
        return [*name, "-", "-", "; ".join(f"{k}: {v}" for k, v in result["left_out"].items())]
    ratios = [
        f"{other} {entry['over_base']['median']:.2f}"
        for other, entry in found.items()
        if other != result["base"]
    ]
    micro = report.duration(found[OURS]["seconds"])
    speed = f"{found[OURS]['bytes_a_second'] / 1e9:.0f} GB/s"
    return [*name, micro, speed, f"over {result['base']}: {', '.join(ratios)}"]
