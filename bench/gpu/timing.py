"""CUDA graphs and facts about the GPU: what a figure from a GPU needs to be believed."""

from __future__ import annotations

import subprocess
from collections.abc import Callable
from typing import Any

import torch

#: the least time of one sample: the host's share of it (a launch, a synchronisation) is then below a few percent
SAMPLE_SECONDS = 2e-3


def graphed(call: Callable[[], object], device: str) -> Callable[[], None]:
    """``call`` captured once in a CUDA graph; the result replays it and waits for its end.

    A graph takes the host's work (checks, allocation, a library that plans on every call) out of the time, for every
    contender alike. On the CPU, where only this program is tested, ``call`` itself.
    """
    if device == "cpu":
        return lambda: (call(), None)[1]
    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):  # as torch's documentation asks for: warm up on a side stream
        for _ in range(3):
            call()
    torch.cuda.current_stream().wait_stream(side)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        call()

    def replay() -> None:
        graph.replay()
        torch.cuda.synchronize()

    return replay


def waited(call: Callable[[], object], device: str) -> Callable[[], None]:
    """``call`` up to the end of its work on the device, the host's share included."""
    synchronize = torch.cuda.synchronize if device == "cuda" else lambda: None

    def run() -> None:
        call()
        synchronize()

    return run


def alike(
    calls: dict[str, Callable[[], object]], device: str, waits: str | None = None
) -> tuple[dict[str, Callable[[], object]], str]:
    """All calls made ready in the same way, and its name: as graphs, or as plain calls where one is not captured.

    Args:
        calls: name -> call.
        device: ``"cuda"``, or ``"cpu"`` in a test of the program.
        waits: which call is known to wait for the device; None to ask torch about each.
    """
    if reason := waits or _waits(calls, device):
        how = f"calls with their work on the host: no graph, {reason}"
        return {name: waited(call, device) for name, call in calls.items()}, how
    return {name: graphed(call, device) for name, call in calls.items()}, "graphs"


def _waits(calls: dict[str, Callable[[], object]], device: str) -> str | None:
    """Which call waits for the device, by torch's own debug mode, and in what words; a capture would fail there."""
    if device == "cpu":
        return None
    before = torch.cuda.get_sync_debug_mode()
    for name, call in calls.items():
        torch.cuda.set_sync_debug_mode("error")
        try:
            call()
        except RuntimeError as error:
            return f"{name}: {(str(error).splitlines() or [''])[0][:200]}"
        finally:
            torch.cuda.set_sync_debug_mode(before)
    return None


def cold_bytes(device: str) -> int:
    """How many bytes of weights a stack must have so that none of them is still in the L2 cache."""
    if device == "cpu":
        return 1 << 16
    return 4 * int(torch.cuda.get_device_properties(0).L2_cache_size)


def facts(device: str) -> dict[str, Any]:
    """The GPU, its clocks and limits while idle, driver and library versions."""
    if device == "cpu":
        return {"gpu": "none (a test of the program)"}
    properties = torch.cuda.get_device_properties(0)
    return {
        "gpu": properties.name,
        "compute_capability": f"{properties.major}.{properties.minor}",
        "processors": properties.multi_processor_count,
        "memory_bytes": properties.total_memory,
        "l2_bytes": properties.L2_cache_size,
        "cuda": torch.version.cuda,
        "cudnn": torch.backends.cudnn.version(),
        "cusparselt": _cusparselt(),
        **clocks(),
    }


def clocks() -> dict[str, str]:
    """What nvidia-smi says of clocks, power and driver; the reason where it says nothing."""
    names = (
        "clocks.sm", "clocks.mem", "clocks.max.sm", "power.draw", "power.limit", "driver_version",
    )  # fmt: skip
    command = ["nvidia-smi", f"--query-gpu={','.join(names)}", "--format=csv,noheader", "-i", "0"]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=30, check=True)
    except (OSError, subprocess.SubprocessError) as error:
        return {"clocks": f"unknown: {error}"}
    return dict(zip(names, (v.strip() for v in done.stdout.split(",")), strict=False))


def _cusparselt() -> str:
    try:
        return str(torch.backends.cusparselt.version())
    except (AttributeError, RuntimeError) as error:
        return f"none: {error}"
