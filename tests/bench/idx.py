"""The format of the MNIST files, written: for the tests of its reader."""

from __future__ import annotations

import struct

import numpy as np


def idx_bytes(array: np.ndarray, kind: int = 8) -> bytes:
    """Header and bytes of an array; ``kind`` 8 is what bytes have."""
    sizes = b"".join(struct.pack(">I", size) for size in array.shape)
    return bytes((0, 0, kind, array.ndim)) + sizes + array.astype(np.uint8).tobytes()
