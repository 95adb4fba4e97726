"""Peers that no package index has in a form that Python can call: named in every record, with the reason."""

from __future__ import annotations

from bench.peers.adapter import Adapter, Job, Stack


def nothing(job: Job) -> Stack | None:
    """No stack: the adapter is always missing."""
    return None


LIBXSMM = Adapter(
    "libxsmm",
    "sparse",
    nothing,
    lambda threads: (
        "no pip package holds the library; Debian's (1.17) is for C programs and needs a compiler"
    ),
)
XNNPACK = Adapter(
    "XNNPACK",
    "sparse",
    nothing,
    lambda threads: (
        "no pip package holds the library; Debian's (of 2022) is for C programs and needs a compiler"
    ),
)
