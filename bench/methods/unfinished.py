"""The cells of a run that is not finished, beside its record, for ``--resume``."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any


def path_of(record: Path) -> Path:
    """Where they are."""
    return record.with_suffix(".cells.part")


def keep(record: Path, cells: Mapping[str, Any]) -> None:
    """Write them."""
    path = path_of(record)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(cells))


def load(record: Path) -> dict[str, Any]:
    """Read them; none where there is no such file."""
    path = path_of(record)
    found: dict[str, Any] = json.loads(path.read_text()) if path.exists() else {}
    return found
