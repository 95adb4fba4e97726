"""Timing that can be trusted on a noisy machine; every benchmark and ``optimize_for_inference`` uses it.

The laws: warm up; run all contenders in every round, in a shuffled order; compare them round by round (a slow moment
hits both); give the median with p20 and p80; and measure the same callable twice (the A/A control), because a speed-up
inside the A/A spread is noise.
"""

from __future__ import annotations

import contextlib
import functools
import gc
import os
import platform
import random
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path

import torch

CONTROL_SUFFIX = " (A/A)"
DEFAULT_CACHE_BYTES = 32 << 20  # where the system does not tell its last-level cache


@dataclass(frozen=True)
class Timing:
    """Seconds per call of one contender over the rounds."""

    median: float
    p20: float
    p80: float
    min: float
    rounds: int

    def to_dict(self) -> dict[str, float]:
        """The fields as plain numbers, for JSON."""
        return asdict(self)


@dataclass(frozen=True)
class Ratio:
    """Per-round ratios of two contenders; above 1 the second one is faster."""

    median: float
    p20: float
    p80: float

    def to_dict(self) -> dict[str, float]:
        """The fields as plain numbers, for JSON."""
        return asdict(self)

    def __str__(self) -> str:
        return f"{self.median:.2f}x ({self.p20:.2f}..{self.p80:.2f})"


@dataclass(frozen=True)
class Measurement:
    """Samples of all contenders: ``samples[name][r]`` is seconds per call in round ``r``."""

    samples: Mapping[str, tuple[float, ...]]

    def timing(self, name: str) -> Timing:
        """Median, p20, p80 and minimum of one contender."""
        values = sorted(self._of(name))
        p20, median, p80 = (quantile(values, q) for q in (0.2, 0.5, 0.8))
        return Timing(median, p20, p80, values[0], len(values))

    def ratio(self, a: str, b: str) -> Ratio:
        """Per-round time of ``a`` over time of ``b``: the speed-up of ``b`` against ``a``."""
        pairs = zip(self._of(a), self._of(b), strict=True)
        ratios = sorted(x / y for x, y in pairs)
        p20, median, p80 = (quantile(ratios, q) for q in (0.2, 0.5, 0.8))
        return Ratio(median, p20, p80)

    def control(self, name: str) -> Ratio:
        """The A/A ratio of ``name``; its distance from 1 is the noise of this measurement."""
        return self.ratio(name, name + CONTROL_SUFFIX)

    def noise(self, name: str) -> float:
        """How far the p20..p80 of the A/A ratio of ``name`` strays from 1 (0.03 means 3 %)."""
        control = self.control(name)
        return max(control.p80, 1 / control.p20) - 1

    def _of(self, name: str) -> tuple[float, ...]:
        if name not in self.samples:
            raise KeyError(f"no contender {name!r}; measured were {sorted(self.samples)}")
        return self.samples[name]


def quantile(ordered: list[float], q: float) -> float:
    """The ``q`` quantile (fraction 0-1) of sorted values, linear between neighbours."""
    if not ordered:
        raise ValueError("a quantile needs at least one value, got 0")
    position = q * (len(ordered) - 1)
    low = int(position)
    high = min(low + 1, len(ordered) - 1)
    return ordered[low] + (ordered[high] - ordered[low]) * (position - low)


def add_control(
    contenders: Mapping[str, Callable[[], object]], name: str
) -> dict[str, Callable[[], object]]:
    """The contenders and the A/A control of ``name``: the same callable a second time."""
    if name not in contenders:
        raise KeyError(f"no contender {name!r}; there are {sorted(contenders)}")
    return {**contenders, name + CONTROL_SUFFIX: contenders[name]}


def interleave(
    contenders: Mapping[str, Callable[[], object]],
    *,
    rounds: int = 25,
    warmup: int = 2,
    seed: int = 0,
    calls: int | Mapping[str, int] = 1,
    min_sample: float = 0.0,
    max_seconds: float | None = None,
    min_rounds: int = 5,
    before: Callable[[], object] | Mapping[str, Callable[[], object]] | None = None,
    synchronize: Callable[[], object] | None = None,
    clock: Callable[[], float] = time.perf_counter,
) -> Measurement:
    """Time all contenders in interleaved rounds of shuffled order.

    ``samples[name][r] = (clock after - clock before) / calls``, both read after ``synchronize()``

    Args:
        contenders: name -> callable without arguments.
        rounds: how many rounds; every contender gives one sample in each.
        warmup: untimed calls of every contender before the first round.
        seed: of the shuffling.
        calls: calls per sample, for all or by name.
        min_sample: seconds; calls are raised, per contender, until a sample takes at least about this long.
        max_seconds: stop early after this many seconds, but not before ``min_rounds`` rounds.
        min_rounds: the least number of rounds when ``max_seconds`` cuts.
        before: untimed, before each sample (to flush caches, say), the same for all or by name.
        synchronize: waits for the device on which the contenders work, before and after each sample; see
            ``synchronizer``. None where a call has done its work when it returns, as on the CPU.
        clock: seconds; tests pass a fake one.

    Returns:
        The samples of every contender; nothing is dropped.

    Raises:
        ValueError: without contenders, or if ``rounds < 1``.

    Notes:
        The garbage collector rests while the rounds run. Use ``with threads(1):`` around it.

    Example:
        >>> import torch
        >>> from evoprune_kernels import measure
        >>> x = torch.randn(64, 64)
        >>> contenders = measure.add_control({"mm": lambda: x @ x, "add": lambda: x + x}, "mm")
        >>> result = measure.interleave(contenders, rounds=3)
        >>> result.timing("mm").rounds
        3
        >>> result.ratio("mm", "add").median > 0
        True
    """
    if not contenders or rounds < 1:
        raise ValueError(f"expected contenders and rounds >= 1, got {len(contenders)} and {rounds}")
    wait = synchronize or _nothing

    def sample(call: Callable[[], object], count: int) -> float:
        wait()
        begin = clock()
        for _ in range(count):
            call()
        wait()
        return clock() - begin

    counts = {name: calls if isinstance(calls, int) else calls[name] for name in contenders}
    for name, call in contenders.items():
        elapsed = sample(call, max(1, warmup)) if warmup or min_sample else 0.0
        if min_sample > 0:
            one = max(elapsed / max(1, warmup), 1e-9)
            counts[name] = max(counts[name], int(min_sample / one) + 1)
    generator = random.Random(seed)
    order = list(contenders)
    samples: dict[str, list[float]] = {name: [] for name in contenders}
    with _no_collection():
        start = clock()
        for done in range(rounds):
            if max_seconds is not None and done >= min_rounds and clock() - start > max_seconds:
                break
            generator.shuffle(order)
            for name in order:
                if prepare := before.get(name) if isinstance(before, Mapping) else before:
                    prepare()
                samples[name].append(sample(contenders[name], counts[name]) / counts[name])
    return Measurement({name: tuple(values) for name, values in samples.items()})


def synchronizer(*devices: torch.device) -> Callable[[], object] | None:
    """What waits for all work on ``devices``: ``torch.<type>.synchronize`` of each; None where all are the CPU.

    Raises:
        ValueError: for a device whose work cannot be waited for, so that no time would be true.

    Example:
        >>> import torch
        >>> from evoprune_kernels import measure
        >>> measure.synchronizer(torch.device("cpu")) is None
        True
    """
    waits = []
    for device in dict.fromkeys(devices):
        if device.type == "cpu":
            continue
        wait = getattr(getattr(torch, device.type, None), "synchronize", None)
        if wait is None:
            raise ValueError(
                f"expected cpu or a device with torch.{device.type}.synchronize, got {device}"
            )
        waits.append(functools.partial(wait, device))
    return (lambda: [wait() for wait in waits]) if waits else None


def cache_bytes(device: torch.device) -> int:
    """Size of the last cache before the memory of ``device``: L2 of a CUDA GPU, else ``last_level_cache_bytes``."""
    if device.type == "cuda":
        return int(torch.cuda.get_device_properties(device).L2_cache_size)
    return last_level_cache_bytes()


def _nothing() -> None:
    pass


@contextlib.contextmanager
def _no_collection() -> Iterator[None]:
    enabled = gc.isenabled()
    gc.collect()
    gc.disable()
    try:
        yield
    finally:
        if enabled:
            gc.enable()


@contextlib.contextmanager
def threads(n: int) -> Iterator[None]:
    """Run the block with ``n`` torch threads, then restore the number."""
    before = torch.get_num_threads()
    torch.set_num_threads(n)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def machine_info() -> dict[str, str | int]:
    """What a figure must be read with: processor, ISA level, threads and versions; no host name."""
    package = sys.modules.get("evoprune_kernels")
    return {
        "cpu": _cpu_model(),
        "cores": os.cpu_count() or 0,
        "isa": _isa_level(),
        "last_level_cache_bytes": last_level_cache_bytes(),
        "threads": torch.get_num_threads(),
        "system": f"{platform.system()} {platform.machine()}",
        "python": platform.python_version(),
        "torch": torch.__version__,
        "evoprune_kernels": getattr(package, "__version__", "unknown"),
    }


def last_level_cache_bytes(root: Path = Path("/sys/devices/system/cpu/cpu0/cache")) -> int:
    """Size of the last-level cache in bytes; 32 MiB where the system does not tell."""
    units = {"K": 1 << 10, "M": 1 << 20, "G": 1 << 30}
    sizes = []
    for file in root.glob("index*/size"):
        text = file.read_text().strip()
        if text[:-1].isdigit() and text[-1:] in units:
            sizes.append(int(text[:-1]) * units[text[-1]])
    return max(sizes, default=DEFAULT_CACHE_BYTES)


def _cpu_model() -> str:
    try:
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            key, _, value = line.partition(":")
            if key.strip() == "model name":
                return value.strip()
    except OSError:
        pass  # not Linux: the next line is the best that Python knows
    return platform.processor() or platform.machine()


def _isa_level() -> str:
    try:
        return str(torch.ops.evoprune_raw.isa_level())
    except (AttributeError, RuntimeError):  # _cpu.so is not loaded
        return "none"
