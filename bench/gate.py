"""No figure without correctness: the tests of what is measured run first, in a process of their own."""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from torch import Tensor

ROOT = Path(__file__).resolve().parents[1]


class GateError(RuntimeError):
    """The tests of what should be measured fail, so there is nothing to report."""


@dataclass(frozen=True)
class Gate:
    """Which tests stand behind a report: ``status`` is ``passed`` or ``not run (--no-gate)``."""

    status: str
    tests: tuple[str, ...]
    summary: str
    seconds: float

    def to_dict(self) -> dict[str, object]:
        """The fields, for JSON."""
        return asdict(self)


def add_argument(parser: argparse.ArgumentParser) -> None:
    """``--no-gate``."""
    parser.add_argument(
        "--no-gate",
        action="store_true",
        help="measure without running the tests first; only for development, the report says so",
    )


def hold(what: str, found: Tensor, true: Tensor, most: float, scale: float | None = None) -> None:
    """Hold a result against the true one: the largest difference over ``scale``, by default the largest true value.

    Raises:
        GateError: if that is more than ``most``, or NaN.
    """
    size = float(true.abs().max()) if scale is None else scale
    error = float((found - true).abs().max()) / max(size, 1e-30)
    if not error <= most:
        raise GateError(f"{what}: error {error:.2e}, at most {most:.0e}")


def check(
    tests: Sequence[str], *, skip: bool = False, environment: Mapping[str, str] | None = None
) -> Gate:
    """Run ``tests`` (paths from the repository's root) by pytest in a subprocess, ``environment`` added to ours.

    Raises:
        GateError: if a path is missing or a test fails, with the end of pytest's output.
    """
    if skip:
        return Gate("not run (--no-gate)", tuple(tests), "", 0.0)
    missing = [path for path in tests if not (ROOT / path).exists()]
    if missing:
        raise GateError(f"no such tests: {', '.join(missing)}")
    command = [sys.executable, "-m", "pytest", "-x", "-m", "not slow", *tests]
    print(f"gate: {' '.join(['python', *command[1:]])}", file=sys.stderr, flush=True)
    start = time.perf_counter()
    variables = {**os.environ, **(environment or {})}
    done = subprocess.run(
        command, cwd=ROOT, env=variables, capture_output=True, text=True, check=False
    )
    lines = (done.stdout + done.stderr).strip().splitlines()
    if done.returncode != 0:
        tail = "\n".join(lines[-25:])
        raise GateError(f"the tests fail, so nothing is measured: {' '.join(tests)}\n{tail}")
    summary = next((line for line in reversed(lines) if " passed" in line), lines[-1])
    return Gate("passed", tuple(tests), summary.strip("= "), time.perf_counter() - start)
