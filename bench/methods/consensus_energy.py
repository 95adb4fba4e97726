"""Time and energy of an image: the dense network against compacted ones of the recorded shapes, random weights.

Energy is what the processor counts (RAPL, ``/sys/class/powercap``) where it can be read, else an estimate of codecarbon
where that is installed, else there is none and the record says why: the time then stands for it.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import nn

from bench.methods import models
from evoprune_kernels import measure

BATCHES = (1, 64)
POWERCAP = Path("/sys/class/powercap")


def rapl(root: Path = POWERCAP) -> tuple[list[tuple[Path, int]], str]:
    """Counters of the processor packages with their ranges in uJ, or none and the reason."""
    found = []
    if not root.is_dir():
        return [], f"no {root.name} in this system: no RAPL counters"
    for domain in sorted(root.glob("intel-rapl:*")):
        counter, most = domain / "energy_uj", domain / "max_energy_range_uj"
        if domain.name.count(":") != 1:  # cores and memory within a package
            continue
        try:
            int(counter.read_text())
            found.append((counter, int(most.read_text())))
        except (OSError, ValueError) as error:
            return [], f"RAPL cannot be read: {type(error).__name__}"
    return found, "" if found else "no RAPL package counters"


def joules(counters: list[tuple[Path, int]], call: Callable[[], object], calls: int) -> float:
    """Energy of one call in J, counters that went over their range included; of the whole package, idle power too."""
    before = [int(path.read_text()) for path, _ in counters]
    for _ in range(calls):
        call()
    after = [int(path.read_text()) for path, _ in counters]
    used = sum(
        (b - a) % (most + 1) for a, b, (_, most) in zip(before, after, counters, strict=True)
    )
    return used * 1e-6 / calls


def carbon(call: Callable[[], object], calls: int) -> float | None:
    """codecarbon's estimate of one call in J, or None where it is not installed."""
    try:
        from codecarbon import EmissionsTracker
    except ImportError:
        return None
    tracker = EmissionsTracker(save_to_file=False, log_level="error", measure_power_secs=1)
    tracker.start()
    for _ in range(calls):
        call()
    tracker.stop()
    return float(tracker.final_emissions_data.energy_consumed) * 3.6e6 / calls


def networks(results: Mapping[str, Any]) -> dict[str, nn.Module]:
    """``dense`` and, of seed 0, every compacted network: name -> network of its shape, random weights, eval mode."""
    shape = results["model"]
    shapes: dict[str, list[int] | None] = {"dense": None}
    for key, cell in results["cells"].items():
        arm, point, seed = key.split("|")
        if seed == "0" and "inner" in cell and arm.startswith("consensus"):
            shapes[f"{arm} {100 * float(point):.4g}%"] = cell["inner"]

    def make(inner: list[int] | None) -> nn.Module:
        return models.seeded(lambda: models.resnet(**shape, inner=inner), 0).eval()

    return {name: make(inner) for name, inner in shapes.items()}


@torch.inference_mode()
def measure_all(results: Mapping[str, Any], quick: bool = False) -> dict[str, Any]:
    """Per batch size and network: seconds, speed-up over dense and joules of an image."""
    nets = networks(results)
    counters, reason = rapl()
    source = "RAPL, whole package" if counters else ""
    rows = []
    for batch in BATCHES:
        x = torch.rand(batch, *results["image"], generator=torch.Generator().manual_seed(0))
        calls = {name: _call(net, x) for name, net in nets.items()}
        timed = measure.interleave(
            measure.add_control(calls, "dense"),
            rounds=5 if quick else 41,
            min_sample=0.0 if quick else 0.05,
            max_seconds=None if quick else 30,
        )
        for name, call in calls.items():
            seconds = timed.timing(name)
            count = 3 if quick else max(1, int(3.0 / seconds.median))
            energy = joules(counters, call, count) if counters else carbon(call, count)
            if energy is not None and not counters:
                source = "codecarbon, an estimate"
            rows.append(
                {
                    "batch": batch,
                    "network": name,
                    "seconds": seconds.to_dict(),
                    "speedup": timed.ratio("dense", name).to_dict(),
                    "joules_per_image": None if energy is None else energy / batch,
                }
            )
        rows[-len(calls)]["control"] = timed.control("dense").to_dict()
    return {
        "rows": rows,
        "energy": source or f"time only: {reason}, and codecarbon is not installed",
        "quick": quick,
    }


def _call(net: nn.Module, x: torch.Tensor) -> Callable[[], object]:
    net, x = net.to(memory_format=torch.channels_last), x.to(memory_format=torch.channels_last)
    return lambda: net(x)
