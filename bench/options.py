"""The options that every benchmark of single layers has."""

from __future__ import annotations

import argparse

from bench import gate


def add_options(
    parser: argparse.ArgumentParser, name: str, *, rounds: int, seconds: float, one: str
) -> None:
    """Threads, rounds, seconds for each ``one``, ``--quick``, where the record ``name`` goes, ``--no-gate``."""
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--rounds", type=int, default=rounds)
    parser.add_argument("--seconds", type=float, default=seconds, help=f"at most this long a {one}")
    parser.add_argument("--quick", action="store_true", help="small layers; a test of the program")
    parser.add_argument("--json", "--out", dest="out", help=f"default: bench/results/{name}.json")
    gate.add_argument(parser)
