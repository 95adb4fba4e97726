"""What every benchmark writes: a table to read and one JSON file that says how its figures were made."""

from __future__ import annotations

import json
import shlex
import subprocess
import sys
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from bench.gate import ROOT, Gate
from evoprune_kernels import measure

RESULTS = ROOT / "bench" / "results"
REQUIRED = (
    "benchmark",
    "label",
    "command",
    "commit",
    "date",
    "machine",
    "threads",
    "gate",
    "results",
)


def build(
    benchmark: str, results: Mapping[str, Any], *, gate: Gate, threads: int, quick: bool = False
) -> dict[str, Any]:
    """The record of one run: ``results`` and everything that a reader needs to believe or repeat it."""
    return {
        "benchmark": benchmark,
        "label": "quick (few rounds: a test of the program, not a figure)" if quick else "measured",
        "command": command(sys.argv),
        "commit": commit(),
        "date": datetime.now(UTC).strftime("%Y-%m-%d"),
        "machine": {k: v for k, v in measure.machine_info().items() if k != "threads"},
        "threads": threads,
        "gate": gate.to_dict(),
        "results": dict(results),
    }


def command(argv: Sequence[str]) -> str:
    """The command line that ``argv`` came from: ``python -m bench linear``, ``python -m bench.demo``."""
    program = Path(argv[0])
    if program.suffix != ".py":  # called from Python, a test for one
        return "python -m bench"
    module = "bench" if program.stem == "__main__" else f"bench.{program.stem}"
    return " ".join(["python -m", module, *map(shlex.quote, argv[1:])])


def source(record: Mapping[str, Any]) -> str:
    """The sentence under a table: how its figures were made."""
    machine = record["machine"]
    threads = f"{record['threads']} thread{'s' * (record['threads'] != 1)}"
    return (
        f"`{record['command']}`, {record['label']} {record['date']} at {record['commit']}: {machine['cpu']}, "
        f"{machine['isa']}, {threads}, torch {machine['torch']}. Medians; p20-p80 of the rounds in brackets."
    )


def write(record: Mapping[str, Any], path: Path | str | None = None) -> Path:
    """Write ``record`` as JSON to ``path`` (default: ``bench/results/<benchmark>.json``); NaN is an error."""
    missing = [key for key in REQUIRED if key not in record]
    if missing:
        raise ValueError(f"the record lacks {missing}")
    target = Path(path) if path else RESULTS / f"{record['benchmark']}.json"
    text = json.dumps(record, indent=1, allow_nan=False)
    target.parent.mkdir(parents=True, exist_ok=True)
    half = target.with_name(target.name + ".part")  # a stop while it is written loses nothing
    half.write_text(text + "\n")
    half.replace(target)
    return target


def commit() -> str:
    """The commit of the sources, ``unknown`` outside a checkout, with ``+changes`` when it is not clean."""
    try:
        head = _git("rev-parse", "--short", "HEAD")
        # the results themselves change with every run
        changes = _git(
            "status", "--porcelain", "--untracked-files=no", "--", ".", ":!bench/results"
        )
    except (OSError, subprocess.CalledProcessError):
        return "unknown"
    return head + ("+changes" if changes else "")


def unchanged_since(commit: str, paths: Sequence[str]) -> bool:
    """Whether ``paths`` are now what they were at ``commit`` (as ``commit()`` names it, clean)."""
    if not commit or commit == "unknown" or commit.endswith("+changes"):
        return False
    try:
        return _git("diff", "--name-only", commit, "--", *paths) == ""
    except (OSError, subprocess.CalledProcessError):
        return False


def _git(*arguments: str) -> str:
    done = subprocess.run(["git", *arguments], cwd=ROOT, capture_output=True, text=True, check=True)
    return done.stdout.strip()


def ratio(value: Mapping[str, float]) -> str:
    """``1.52x (1.46-1.68)``: median and p20-p80 of a ratio."""
    return f"{value['median']:.2f}x ({value['p20']:.2f}-{value['p80']:.2f})"


def table(header: Sequence[str], rows: Sequence[Sequence[object]]) -> str:
    """A Markdown table with aligned columns; numbers to the right, ``|`` in a cell escaped."""
    texts = [[str(cell).replace("|", "\\|") for cell in row] for row in [header, *rows]]
    widths = [max(len(row[i]) for row in texts) for i in range(len(header))]
    right = [
        bool(rows) and all(isinstance(r[i], int | float) or _numeric(str(r[i])) for r in rows)
        for i in range(len(header))
    ]

    def line(cells: Sequence[str]) -> str:
        padded = [
            c.rjust(w) if r else c.ljust(w) for c, w, r in zip(cells, widths, right, strict=True)
        ]
        return "| " + " | ".join(padded) + " |"

    rule = ["-" * (w - 1) + ":" if r else "-" * w for w, r in zip(widths, right, strict=True)]
    return "\n".join([line(texts[0]), line(rule), *(line(row) for row in texts[1:])])


def _numeric(text: str) -> bool:
    return text[:1].isdigit() or text in ("", "-")


def duration(seconds: float) -> str:
    """``12.3 us``, ``4.56 ms``, ``1.2 s``: three digits."""
    for unit, scale in (("s", 1.0), ("ms", 1e-3), ("us", 1e-6)):
        if seconds >= scale:
            return f"{seconds / scale:.3g} {unit}"
    return f"{seconds / 1e-9:.3g} ns"
