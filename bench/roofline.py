"""What this machine can do at best, measured by the package's own probes (csrc/cpu/roofline.cpp).

    read     bytes/s of one pass that sums a buffer: in L2, in the last-level cache, in DRAM
    fma      FLOP/s of independent multiply-add chains in float32
    stream   bytes/s of a fused optimizer step's memory traffic: 5 reads and 4 writes in place and a byte of mask

Every figure is the fastest round of the best way to read (prefetch distance, streams side by side): a limit and no
median. A kernel's *roof* is computed from them: ``max(bytes / read, flop / fma)`` seconds. Nothing with float32 sums is
faster, if probes reach the limits.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch

from evoprune_kernels import measure

#: elements of a work unit of the probes, as in csrc/cpu/kernels.h
SPAN = 16384
#: software prefetch distances in elements; 0: the hardware alone
AHEAD = (0, 128, 512, 2048)
#: how a buffer is read: (prefetch distance, streams side by side)
WAYS = (*((ahead, 1) for ahead in AHEAD), (0, 2), (0, 4))
STREAM_BYTES = 37  # an element: w, m, v and importance read and written, g and a mask byte read
DEFAULT_L2_BYTES = 512 << 10
DRAM_BYTES = 512 << 20


@dataclass(frozen=True)
class Roofline:
    """Measured limits: bandwidths in bytes/s, ``fma`` in FLOP/s; the sizes say what was read."""

    threads: int
    fma: float
    read_l2: float
    read_llc: float
    read_dram: float
    stream: float
    l2_bytes: int
    llc_bytes: int
    dram_bytes: int

    def to_dict(self) -> dict[str, Any]:
        """The fields as plain numbers, for JSON."""
        return asdict(self)

    def merge(self, other: Roofline) -> Roofline:
        """The higher of two measurements of the same machine, limit by limit."""
        mine, others = self.to_dict(), other.to_dict()
        return Roofline(**{name: max(mine[name], others[name]) for name in mine})

    def read(self, nbytes: int) -> float:
        """The bandwidth for a working set of ``nbytes`` that is read again and again."""
        if nbytes <= self.l2_bytes:
            return self.read_l2
        return self.read_llc if nbytes <= self.llc_bytes else self.read_dram

    def seconds(self, nbytes: int, flop: float, *, cold: bool) -> float:
        """The roof: the least time of a kernel that moves ``nbytes`` and does ``flop``."""
        bandwidth = self.read_dram if cold else self.read(nbytes)
        return max(nbytes / bandwidth, flop / self.fma)


def l2_bytes(root: Path = Path("/sys/devices/system/cpu/cpu0/cache")) -> int:
    """Size of the second-level cache; 512 KiB where the system does not tell."""
    for index in root.glob("index*"):
        level, size = (index / name for name in ("level", "size"))
        if level.exists() and level.read_text().strip() == "2":
            text = size.read_text().strip()
            return int(text.removesuffix("K")) << 10 if text.endswith("K") else DEFAULT_L2_BYTES
    return DEFAULT_L2_BYTES


def available() -> bool:
    """Whether the native library with the probes is loaded."""
    return hasattr(torch.ops.evoprune_raw, "probe_read")


def best(calls: dict[str, Callable[[], object]], work: float, seconds: float) -> float:
    """``work`` per second of the fastest sample of any of ``calls``: noise only makes a limit look lower."""
    samples = measure.interleave(calls, rounds=25, min_sample=2e-3, max_seconds=seconds)
    return work / min(samples.timing(name).min for name in calls)


def read_bandwidth(nbytes: int, seconds: float = 2.0) -> float:
    """Bytes/s of reading a buffer of about ``nbytes`` again and again."""
    raw = torch.ops.evoprune_raw
    count = max(1, nbytes // (4 * SPAN)) * SPAN
    data = torch.ones(count)
    repeats = max(1, (1 << 22) // (4 * count))  # small buffers: many passes a call
    calls = {
        f"{streams} streams, {ahead} ahead": functools.partial(
            raw.probe_read, data, repeats, ahead, streams
        )
        for ahead, streams in WAYS
    }
    return best(calls, 4.0 * count * repeats, seconds)


def fma_peak(threads: int = 1, seconds: float = 2.0) -> float:
    """FLOP/s of multiply-add chains in float32."""
    call = functools.partial(torch.ops.evoprune_raw.probe_fma, threads, 100_000)
    return best({"fma": call}, call(), seconds)


def stream_bandwidth(count: int = 16 << 20, seconds: float = 4.0) -> float:
    """Bytes/s of the optimizer's mix over ``count`` parameters (rounded down to whole spans)."""
    count = max(1, count // SPAN) * SPAN
    w, g, m, v, importance = (torch.full((count,), 1e-3) for _ in range(5))
    mask = torch.ones(count, dtype=torch.bool)

    def call(ahead: int) -> Callable[[], object]:
        return lambda: torch.ops.evoprune_raw.probe_stream(
            w, g, m, v, importance, mask, 1e-6, ahead
        )

    return best({str(d): call(d) for d in AHEAD}, float(STREAM_BYTES * count), seconds)


def measure_roofline(threads: int = 1, *, quick: bool = False) -> Roofline | None:
    """All limits of this machine with ``threads`` threads; None without the native library.

    ``quick`` reads little and briefly: a test of the program, not a figure.
    """
    if not available():
        return None
    l2, llc = l2_bytes(), measure.last_level_cache_bytes()
    dram = 4 << 20 if quick else max(DRAM_BYTES, 4 * llc)
    seconds = 0.02 if quick else 2.0
    with measure.threads(threads):
        return Roofline(
            threads=threads,
            fma=fma_peak(threads, seconds),
            read_l2=read_bandwidth(threads * l2 // 2, seconds),
            read_llc=read_bandwidth(min(llc // 2, dram), seconds),
            read_dram=read_bandwidth(dram, 2 * seconds),
            stream=stream_bandwidth(SPAN if quick else 16 << 20, 2 * seconds),
            l2_bytes=l2 * threads,
            llc_bytes=llc,
            dram_bytes=dram,
        )


def lines(roof: dict[str, float]) -> str:
    """The measured limits as one sentence."""
    threads = f"{roof['threads']:.0f} thread{'s' * (roof['threads'] != 1)}"
    giga = {
        name: roof[name] / 1e9 for name in ("fma", "read_l2", "read_llc", "read_dram", "stream")
    }
    return (
        f"Measured limits with {threads}: {giga['fma']:.0f} GFLOP/s of float32 multiply-adds; reading "
        f"{giga['read_l2']:.0f} GB/s from L2, {giga['read_llc']:.0f} GB/s from the last-level cache, "
        f"{giga['read_dram']:.1f} GB/s from DRAM; {giga['stream']:.1f} GB/s in the optimizer's mix of reads and writes."
    )
