"""Which implementation of an op runs, and why the others do not. Pure: no GPU is needed to test it.

Rows, in order of preference: ``cuda`` (CUDA C++, tensors on a GPU), ``triton`` (the same tensors), ``cpu`` (C++,
tensors on the CPU), ``reference`` (plain torch, any device). ``impl="name"`` or ``EVOPRUNE_IMPL=op=name,op=name``
insists; an implementation that cannot run then raises with its reason.
"""

from __future__ import annotations

import os
from collections.abc import Mapping

REFERENCE = "reference"
CUDA = "cuda"
CPU = "cpu"
TRITON = "triton"
#: native implementations: each is named after the device type that it runs on
NATIVE = (CUDA, CPU)
IMPLEMENTATIONS = (CUDA, TRITON, CPU, REFERENCE)
#: implementation -> the only device type that it runs on
DEVICE = {CUDA: CUDA, TRITON: CUDA, CPU: CPU}


def parse_forced(text: str, known: tuple[str, ...] = IMPLEMENTATIONS) -> dict[str, str]:
    """``"nm_linear=reference,select_nm=cpu"`` -> ``{"nm_linear": "reference", "select_nm": "cpu"}``."""
    forced = {}
    for item in filter(None, (part.strip() for part in text.split(","))):
        op, _, impl = item.partition("=")
        if impl not in known:
            raise ValueError(f"EVOPRUNE_IMPL: expected op=impl with impl in {known}, got {item!r}")
        forced[op] = impl
    return forced


FORCED: Mapping[str, str] = parse_forced(os.environ.get("EVOPRUNE_IMPL", ""))


def choose(op: str, device: str, requested: str | None, reasons: Mapping[str, str]) -> str:
    """The implementation of ``op`` for tensors on ``device``.

    Args:
        op: op name, for messages.
        device: device type of the tensors, such as ``"cpu"``.
        requested: an implementation to insist on, or None.
        reasons: implementation name -> why it cannot run; a missing name can run.

    Raises:
        ValueError: if ``requested`` is not an implementation.
        RuntimeError: if ``requested`` cannot run, with the reason.
    """
    if requested is not None and requested not in IMPLEMENTATIONS:
        raise ValueError(f"{op}: impl must be one of {IMPLEMENTATIONS}, got {requested!r}")
    unfit = dict(reasons)
    for name, its_device in DEVICE.items():
        if its_device != device:
            unfit[name] = f"tensors are on {device!r}, these kernels run on {its_device!r}"
    if requested is not None:
        if requested in unfit:
            raise RuntimeError(f"{op}: impl={requested!r} cannot run: {unfit[requested]}")
        return requested
    return next(name for name in IMPLEMENTATIONS if name not in unfit)
