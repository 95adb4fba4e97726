"""What ``compact`` did, and what it was measured to bring."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass, field
from typing import Any

from evoprune_kernels.measure import Ratio, Timing


@dataclass(frozen=True)
class Latency:
    """One forward of the example inputs, in interleaved rounds on this machine.

    Attributes:
        before: seconds of the dense model, without gates. after: of the compacted one.
        speedup: before over after, round by round.
        noise: how far the p20..p80 of the dense model against itself strays from 1; a speed-up within it is noise.
        threads: of torch.
    """

    before: Timing
    after: Timing
    speedup: Ratio
    noise: float
    threads: int

    def __str__(self) -> str:
        before, after = (
            f"{1e3 * t.median:.3g} ms ({1e3 * t.p20:.3g}..{1e3 * t.p80:.3g})"
            for t in (self.before, self.after)
        )
        return (
            f"{before} -> {after}, {self.speedup}; dense against itself strays {self.noise:.0%}, "
            f"{self.before.rounds} rounds, {self.threads} thread(s)"
        )


@dataclass(frozen=True)
class CompactionReport:
    """What ``compact`` did; print it.

    Attributes:
        removed: layer -> ``(output channels removed, output channels before)``.
        blocks: residual blocks whose branch was removed.
        kept: layer -> why closed channels stay in it, with the operation that wants them.
        parameters, flops: ``(before, after)``; FLOPs of the example inputs, 2 a multiply-add, convolutions and linear
            layers. Before: dense, without the gates.
        error: largest difference of an output from the gated model's, as a share of the largest output.
        latency: measured before and after; None if it was not.

    Example:
        >>> print(CompactionReport({"0": (3, 8)}, (), {"1": "2 channels: the output"}, (200, 100), (4000, 1000)))
        removed channels of 1 layers, 0 blocks
          0: 3 of 8
        parameters: 200 -> 100 (50%)
        FLOPs: 4,000 -> 1,000 (25%)
        latency: not measured
        closed but kept: 1: 2 channels: the output
    """

    removed: dict[str, tuple[int, int]] = field(default_factory=dict)
    blocks: tuple[str, ...] = ()
    kept: dict[str, str] = field(default_factory=dict)
    parameters: tuple[int, int] = (0, 0)
    flops: tuple[int, int] = (0, 0)
    error: float = 0.0
    latency: Latency | None = None

    def to_dict(self) -> dict[str, Any]:
        """Everything, in plain types."""
        return dataclasses.asdict(self)

    def __str__(self) -> str:
        lines = [f"removed channels of {len(self.removed)} layers, {len(self.blocks)} blocks"]
        lines += [
            f"  {name}: {gone} of {channels}" for name, (gone, channels) in self.removed.items()
        ]
        lines += [f"  {name}: the branch" for name in self.blocks]
        for what, (before, after) in (("parameters", self.parameters), ("FLOPs", self.flops)):
            lines.append(f"{what}: {before:,} -> {after:,} ({after / max(before, 1):.0%})")
        lines.append(f"latency: {self.latency or 'not measured'}")
        lines += [f"closed but kept: {name}: {reason}" for name, reason in self.kept.items()]
        return "\n".join(lines)
