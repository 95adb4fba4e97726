"""When to prune and how much: pure functions of the pruning step ``t`` (1 on the first step that counts).

::

    kept share
    1 |----------.                     cubic:  kept(t) = final + (1 - final) * (1 - progress)^3
      |           \\                    linear: kept(t) = final + (1 - final) * (1 - progress)
      |             `-.                progress = (t - start) / (end - start), clipped to 0-1
    f |                 `-----------   step:n: n equal jumps, the first at start, the last at end
      |                                constant, one-shot: kept(t) = final from start on
      +----------|---------|-------> t
               start      end

``given``: the schedule never chooses masks.
The cubic ramp is on the kept share, as in Zhu and Gupta, "To prune, or not to prune", 2017 (initial sparsity 0).
"""

from __future__ import annotations

from evoprune_kernels._check import check

#: "step" takes its number of jumps after a colon, as "step:4"
RAMPS = ("cubic", "linear", "step", "constant", "one-shot", "given")


def parse_ramp(ramp: str) -> tuple[str, int]:
    """``"step:4"`` -> ``("step", 4)``; the others have no jumps, 0.

    Raises:
        ValueError: if the text names no ramp, or the jumps are not a number >= 1.
    """
    name, colon, jumps = ramp.partition(":")
    check(
        name in RAMPS and bool(colon) == (name == "step"),
        f"expected ramp in {RAMPS} (step as 'step:4'), got {ramp!r}",
    )
    if name != "step":
        return name, 0
    check(jumps.isdecimal() and int(jumps) >= 1, f"expected jumps >= 1 in ramp, got {ramp!r}")
    return name, int(jumps)


def kept_share(t: int, final: float, start: int, end: int, ramp: str) -> float:
    """The share of the weights that is kept at step ``t``; 1.0 before ``start``.

    Example:
        >>> [round(kept_share(t, 0.2, 10, 20, "cubic"), 3) for t in (9, 10, 15, 20, 99)]
        [1.0, 1.0, 0.3, 0.2, 0.2]
        >>> kept_share(10, 0.2, 10, 20, "constant")
        0.2
        >>> [round(kept_share(t, 0.2, 10, 20, "step:4"), 3) for t in (10, 13, 14, 17, 20)]
        [0.8, 0.8, 0.6, 0.4, 0.2]
    """
    name, jumps = parse_ramp(ramp)
    if t < start:
        return 1.0
    if name in ("constant", "one-shot", "given") or t >= end:
        return final
    if name == "step":
        done = 1 + (t - start) * (jumps - 1) // (end - start)
        return 1.0 - (1.0 - final) * done / jumps
    left = 1.0 - (t - start) / (end - start)
    return final + (1.0 - final) * (left**3 if ramp == "cubic" else left)


def refresh_due(t: int, start: int, end: int, every: int, freeze_at: int | None, ramp: str) -> bool:
    """Whether the masks are chosen anew after step ``t``: at start, every so often, at end; never once frozen.

    Example:
        >>> [t for t in range(40) if refresh_due(t, 5, 18, 10, 30, "cubic")]
        [5, 15, 18, 25]
        >>> [t for t in range(40) if refresh_due(t, 5, 18, 10, None, "one-shot")]
        [5]
    """
    first = max(start, 1)
    if ramp == "given" or t < first or (freeze_at is not None and t > max(freeze_at, first)):
        return False
    if ramp == "one-shot":
        return t == first
    return (t - first) % every == 0 or t == end
