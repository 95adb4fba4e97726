"""Text that every machine has: the sources of the Python standard library, or a file or folder that is given."""

from __future__ import annotations

import random
import sysconfig
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

#: every character that the model knows; others become "?" (control characters a line end), tabs become four spaces
SYMBOLS = "\n" + "".join(map(chr, range(32, 127)))
#: byte -> index in SYMBOLS
INDEX = [max(SYMBOLS.find(chr(byte)), 0) if byte < 128 else 0 for byte in range(256)]
#: folders that hold tests, tables or other people's packages
SKIPPED = {"test", "tests", "idlelib", "site-packages", "dist-packages", "lib2to3", "encodings"}
SKIPPED |= {"__pycache__", "pydoc_data", "ensurepip", "turtledemo"}


@dataclass(frozen=True)
class Text:
    """Encoded text (int64): ``training`` and ``validation`` come from different files."""

    source: str
    files: int
    training: Tensor
    validation: Tensor

    def batch(self, rows: int, length: int, generator: torch.Generator) -> Tensor:
        """``rows`` random windows of ``length`` + 1 training characters."""
        return _windows(self.training, rows, length, generator)

    def held_out(self, rows: int, length: int) -> Tensor:
        """The same ``rows`` windows of held-out characters every time."""
        return _windows(self.validation, rows, length, torch.Generator().manual_seed(1234))


def _windows(data: Tensor, rows: int, length: int, generator: torch.Generator) -> Tensor:
    start = torch.randint(data.numel() - length - 1, (rows, 1), generator=generator)
    return data[start + torch.arange(length + 1)]


def encode(text: str) -> Tensor:
    """Characters -> int64 [len(text)]."""
    data = bytearray(text.expandtabs(4).encode("ascii", "replace"))
    if not data:
        return torch.empty(0, dtype=torch.int64)
    return torch.tensor(INDEX)[torch.frombuffer(data, dtype=torch.uint8).long()]


def decode(tokens: Tensor) -> str:
    """int64 [T] -> characters."""
    return "".join(SYMBOLS[index] for index in tokens.tolist())


def load(path: str | None = None, *, limit: int = 6_000_000, seed: int = 0) -> Text:
    """Read at most ``limit`` characters of ``path``, or of the standard library; a tenth is held out.

    Whole files are held out; with a single file its last tenth is.
    """
    root = Path(path) if path else Path(sysconfig.get_path("stdlib"))
    if root.is_file():
        text = root.read_text(errors="replace")[:limit]
        cut = len(text) * 9 // 10
        return Text(str(root), 1, encode(text[:cut]), encode(text[cut:]))
    pattern = "*" if path else "*.py"
    files = [f for f in sorted(root.rglob(pattern)) if f.is_file() and _wanted(f, root)]
    random.Random(seed).shuffle(files)
    parts: list[str] = []
    total = 0
    for file in files:
        if total >= limit:
            break
        parts.append(file.read_text(errors="replace")[: limit - total])
        total += len(parts[-1])
    if total < 10_000:
        raise ValueError(f"{root}: expected at least 10000 characters of text, found {total}")
    held_out: list[str] = []
    while len(parts) > 1 and sum(map(len, held_out)) < total // 10:
        held_out.append(parts.pop())
    name = str(root) if path else "the Python standard library"
    return Text(name, len(parts) + len(held_out), encode("".join(parts)), encode("".join(held_out)))


def _wanted(file: Path, root: Path) -> bool:
    return not SKIPPED.intersection(file.relative_to(root).parts[:-1])
