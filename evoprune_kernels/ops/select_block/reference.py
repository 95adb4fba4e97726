"""``select_block`` in plain torch: the truth, the fallback and the benchmark baseline."""

from __future__ import annotations

import torch
from torch import Tensor

from evoprune_kernels.ops._rank import keep_highest


def select_block_reference(scores: Tensor, bn: int, bk: int, density: float) -> Tensor:
    """Keep the blocks of the highest sums; see ``select_block``."""
    rows, columns = scores.shape
    block_rows, block_columns = -(-rows // bn), -(-columns // bk)
    pad = (0, block_columns * bk - columns, 0, block_rows * bn - rows)
    padded = torch.nn.functional.pad(scores.float(), pad)
    # fp64 sums: one order for every block, so equal blocks have equal sums
    by_column = padded.view(block_rows * bn, block_columns, bk).sum(-1, dtype=torch.float64)
    sums = by_column.view(block_rows, bn, block_columns).sum(1)
    kept = keep_highest(sums, round(density * sums.numel()))
    mask = kept.repeat_interleave(bn, 0).repeat_interleave(bk, 1)
    return mask[:rows, :columns].contiguous()
