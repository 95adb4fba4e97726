"""``select_nm_transposable`` in plain torch: the truth, the fallback and the benchmark baseline."""

from __future__ import annotations

import functools
import itertools

import torch
from torch import Tensor
from torch.nn.functional import pad

#: the six choices of two columns of four, in ascending order of their bits
CHOICES = ((0, 1), (0, 2), (1, 2), (0, 3), (1, 3), (2, 3))
#: tiles that are tried at once, against the memory of their 90 sums
AT_ONCE = 1 << 16


@functools.cache
def patterns() -> tuple[tuple[int, ...], ...]:
    """The 90 valid patterns as a choice a row, in their order: with two kept in every column.

    Example:
        >>> len(patterns()), patterns()[0], patterns()[-1]
        (90, (0, 0, 5, 5), (5, 5, 0, 0))
    """

    def two_a_column(rows: tuple[int, ...]) -> bool:
        kept = [column for row in rows for column in CHOICES[row]]
        return all(kept.count(column) == 2 for column in range(4))

    return tuple(rows for rows in itertools.product(range(6), repeat=4) if two_a_column(rows))


def select_nm_transposable_reference(scores: Tensor) -> Tensor:
    """Keep the best two of every row and column of 4 x 4 tiles; see ``select_nm_transposable``."""
    rows, columns = scores.shape
    padded = pad(scores.float(), (0, -columns % 4, 0, -rows % 4))
    tiles = padded.unflatten(0, (-1, 4)).unflatten(2, (-1, 4)).transpose(1, 2)
    numbers = torch.tensor(patterns(), device=scores.device)
    one_row = torch.zeros(6, 4, dtype=torch.bool, device=scores.device)
    one_row.scatter_(1, torch.tensor(CHOICES, device=scores.device), True)
    best = [_best(piece, numbers) for piece in tiles.reshape(-1, 4, 4).split(AT_ONCE)]
    mask = one_row[numbers[torch.cat(best)]].view(tiles.shape)
    return mask.transpose(1, 2).reshape(padded.shape)[:rows, :columns].contiguous()


def _best(tiles: Tensor, numbers: Tensor) -> Tensor:
    """The number of the best pattern of each of ``tiles`` [T, 4, 4]; a sum that is NaN counts as -inf."""
    low, high = torch.tensor(CHOICES, device=tiles.device).unbind(1)
    tiles = tiles.masked_fill(tiles.isnan(), -torch.inf)
    row = tiles[..., low] + tiles[..., high]
    top = (row[:, 0, :, None] + row[:, 1, None, :]).flatten(1)
    bottom = (row[:, 2, :, None] + row[:, 3, None, :]).flatten(1)
    first, second, third, fourth = numbers.unbind(1)
    sums = top[:, 6 * first + second] + bottom[:, 6 * third + fourth]
    return sums.masked_fill_(sums.isnan(), -torch.inf).argmax(1)
