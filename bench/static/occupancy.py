"""How many blocks of a kernel run on one multiprocessor at once: the limits of each architecture, worked out."""

from __future__ import annotations

from dataclasses import dataclass

WARP = 32
REGISTERS = 65536  # of a multiprocessor, on all of these
PARTITIONS = 4  # of a multiprocessor; a warp's registers are in one of them
REGISTER_UNIT = 256  # of a warp
SHARED_UNIT = 128
RESERVED = 1024  # bytes of shared memory that the system takes of each block


@dataclass(frozen=True)
class Limits:
    """Of one multiprocessor (NVIDIA, "CUDA C++ Programming Guide", compute capabilities)."""

    threads: int
    blocks: int
    shared: int  # bytes


ARCHS = {
    "80": Limits(2048, 32, 164 << 10),
    "86": Limits(1536, 16, 100 << 10),
    "89": Limits(1536, 24, 100 << 10),
    "90": Limits(2048, 32, 228 << 10),
    "100": Limits(2048, 32, 228 << 10),
}


def round_up(value: int, unit: int) -> int:
    return -(-value // unit) * unit


def blocks_per_processor(arch: str, registers: int, threads: int, shared: int) -> int:
    """Resident blocks of ``threads`` threads with ``registers`` each and ``shared`` bytes a block (static + dynamic).

    Raises:
        ValueError: for an architecture that is not in ``ARCHS``.
    """
    if arch not in ARCHS:
        raise ValueError(f"architecture {arch!r}: expected one of {sorted(ARCHS)}")
    limits = ARCHS[arch]
    warps = -(-threads // WARP)
    of_warp = round_up(max(registers, 1) * WARP, REGISTER_UNIT)
    resident = REGISTERS // PARTITIONS // of_warp * PARTITIONS
    return min(
        limits.blocks,
        limits.threads // WARP // warps,
        resident // warps,
        limits.shared // round_up(shared + RESERVED, SHARED_UNIT),
    )
