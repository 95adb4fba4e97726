"""What a problem takes at the limits of a GPU: a calculation from counts, never a measurement.

Time is the largest of: bytes over the bandwidth of memory, operations over the peak of the unit that does them, shared
memory wavefronts and warp instructions over what the multiprocessors can start. The problem counts as one of many that
fill the GPU: all multiprocessors share its work. Nothing of latency, launches, caches or idle multiprocessors is in it,
so that a real run takes longer.
"""

from __future__ import annotations

from dataclasses import dataclass

from bench.static.simulated import Counts, operations, wavefronts


@dataclass(frozen=True)
class Machine:
    """The limits of one GPU, from its data sheet; ``peaks`` in operations a second, sparse ones as dense ones."""

    name: str
    memory: float  # bytes a second
    peaks: dict[str, float]
    processors: int
    clock: float  # Hz, that of the peaks

    def limits(self, counts: Counts) -> dict[str, float]:
        """Limit -> seconds."""
        cycles = self.processors * self.clock  # a second
        times = {"memory": counts.footprint / self.memory}
        for unit, number in operations(counts.stats).items():
            times[unit] = number / self.peaks[unit]
        times["shared memory"] = wavefronts(counts.stats) / cycles
        times["instructions"] = counts.stats["inst"] / (4 * cycles)
        return times


MACHINES = [
    Machine(
        "A100",
        2.0e12,
        {
            "tensor 16": 312e12, "sparse 16": 624e12, "tensor tf32": 156e12, "sparse tf32": 312e12,
            "tensor s8": 624e12, "sparse s8": 1248e12, "fp32": 19.5e12,
        },
        108,
        1.41e9,
    ),
    Machine(
        "H100",
        3.35e12,
        {
            "tensor 16": 989e12, "sparse 16": 1979e12, "tensor tf32": 495e12, "sparse tf32": 989e12,
            "tensor s8": 1979e12, "sparse s8": 3958e12, "fp32": 67e12,
        },
        132,
        1.83e9,
    ),
]  # fmt: skip


def bound(counts: Counts, machine: Machine) -> tuple[float, str, str]:
    """``(seconds, the limit that holds, the next one with its share of the time)``."""
    times = sorted(machine.limits(counts).items(), key=lambda item: -item[1])
    (first, seconds), (second, next_) = times[:2]
    share = 100 * next_ / seconds if seconds else 0.0
    return seconds, first, f"{second} {share:.0f} %"
