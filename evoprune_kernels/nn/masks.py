"""Which weights a layer keeps: a given mask, the largest magnitudes, or the zeros that are already there."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.functional import pad

from evoprune_kernels import ops
from evoprune_kernels._check import check
from evoprune_kernels.formats import NM, Block, Pattern, Unstructured, parse_pattern


def layer_pattern(pattern: str | Pattern, sparsity: float | None) -> Pattern:
    """The parsed pattern of a layer; ``ValueError`` for one without a kernel or an impossible ``sparsity``.

    Args:
        pattern: ``"n:m"``, ``"block:RxC"`` or ``"unstructured"``.
        sparsity: fraction 0-1 of the weights to remove, or None. ``n:m`` fixes it to ``1 - n/m``.
    """
    parsed = parse_pattern(pattern)
    if not isinstance(parsed, NM | Block | Unstructured):
        raise ValueError(
            f"no sparse layer for the pattern {str(parsed)!r}: expected n:m, block:RxC or unstructured"
        )
    if sparsity is not None:
        check(0.0 <= sparsity <= 1.0, f"expected 0 <= sparsity <= 1, got {sparsity}")
        if isinstance(parsed, NM):
            fixed = 1 - parsed.n / parsed.m
            check(
                abs(sparsity - fixed) < 1e-6,
                f"the pattern {parsed} has sparsity {fixed:g}, got sparsity={sparsity:g}",
            )
    return parsed


def check_finite(weight: Tensor, name: str) -> None:
    """``ValueError`` naming the layer, the count and the first place if ``weight`` holds a NaN."""
    bad = weight.isnan()
    if bool(bad.any()):
        place = bad.nonzero()[0].tolist()
        raise ValueError(f"{name}: weight holds {int(bad.sum())} NaN, the first at {place}")


def group_counts(mask: Tensor, m: int, shared: int = 1) -> Tensor:
    """How many columns are kept in every group of ``m``, by any of ``shared`` rows: [ceil(N/shared), ceil(K/m)]."""
    if shared > 1:
        mask = pad(mask, (0, 0, 0, -mask.shape[0] % shared)).unflatten(0, (-1, shared)).any(1)
    return pad(mask, (0, -mask.shape[1] % m)).unflatten(1, (-1, m)).sum(-1)


def block_counts(mask: Tensor, rows: int, columns: int) -> tuple[Tensor, Tensor]:
    """``(kept, size)`` of every block: [ceil(N/rows), ceil(K/columns)] each; edge blocks are smaller."""

    def count(entries: Tensor) -> Tensor:
        padded = pad(entries, (0, -entries.shape[1] % columns, 0, -entries.shape[0] % rows))
        return padded.unflatten(0, (-1, rows)).unflatten(-1, (-1, columns)).sum((1, 3))

    return count(mask), count(torch.ones_like(mask))


def check_pattern(mask: Tensor, pattern: Pattern, name: str, what: str = "mask") -> None:
    """``ValueError`` naming the layer, how many groups or blocks break the pattern, and the first of them."""
    if isinstance(pattern, NM):
        counts = group_counts(mask, pattern.m, pattern.shared)
        bad = counts > pattern.n
        if bool(bad.any()):
            strip, group = bad.nonzero()[0].tolist()
            start, end = group * pattern.m, min((group + 1) * pattern.m, mask.shape[1])
            first = strip * pattern.shared
            rows = first if pattern.shared == 1 else f"{first}:{first + pattern.shared}"
            raise ValueError(
                f"{name}: {what} does not obey {pattern}: {int(bad.sum())} of {bad.numel()} groups keep more than "
                f"{pattern.n}, the first at [{rows}, {start}:{end}] keeps {int(counts[strip, group])}"
            )
    if isinstance(pattern, Block) and what == "mask":
        kept, size = block_counts(mask, pattern.rows, pattern.columns)
        bad = (kept != 0) & (kept != size)
        if bool(bad.any()):
            row, column = bad.nonzero()[0].tolist()
            raise ValueError(
                f"{name}: mask does not obey {pattern}: {int(bad.sum())} of {bad.numel()} blocks are kept in part, the "
                f"first at block [{row}, {column}] keeps {int(kept[row, column])} of {int(size[row, column])}"
            )


def check_mask(mask: Tensor, weight: Tensor, pattern: Pattern, name: str) -> None:
    """``TypeError`` or ``ValueError`` naming the layer unless ``mask`` is a legal mask of ``weight``."""
    if mask.dtype != torch.bool:
        raise TypeError(f"{name}: expected a mask of dtype torch.bool, got {mask.dtype}")
    expected, shape = tuple(weight.shape), tuple(mask.shape)
    check(shape == expected, f"{name}: expected a mask of shape {expected}, got {shape}")
    check(mask.device == weight.device, f"{name}: mask on {mask.device}, weight on {weight.device}")
    check_pattern(mask, pattern, name)


def choose_mask(
    weight: Tensor,
    pattern: Pattern,
    *,
    mask: Tensor | None = None,
    sparsity: float | None = None,
    name: str = "layer",
) -> Tensor:
    """The mask of a layer: the given one, checked; else by magnitude; else the zeros that are there.

    Args:
        weight: [N, K].
        pattern: n:m, block or unstructured.
        mask: bool [N, K], True = keep.
        sparsity: fraction 0-1 to remove by magnitude (block, unstructured); None keeps what is not zero. An n:m
            pattern always selects by magnitude, which keeps a weight that already obeys it as it is.
        name: of the layer, for messages.

    Returns:
        bool [N, K]. For blocks without ``sparsity``: every block that holds a non-zero.

    Raises:
        ValueError: for NaN in ``weight``, a mask of another shape or one that breaks the pattern.
        TypeError: for a mask that is not bool.

    Example:
        >>> import torch
        >>> from evoprune_kernels.formats import NM
        >>> choose_mask(torch.tensor([[1.0, -3.0, 2.0, 0.5]]), NM(2, 4))
        tensor([[False,  True,  True, False]])
    """
    weight = weight.detach()
    check_finite(weight, name)
    if mask is not None:
        check_mask(mask, weight, pattern, name)
        return mask
    if isinstance(pattern, NM):
        return ops.select_nm(weight.abs(), pattern.n, pattern.m, shared=pattern.shared)
    if isinstance(pattern, Block):
        rows, columns = pattern.rows, pattern.columns
        if sparsity is not None:
            return ops.select_block(weight.abs(), rows, columns, 1 - sparsity)
        kept = (block_counts(weight != 0, rows, columns)[0] > 0).repeat_interleave(rows, 0)
        return kept.repeat_interleave(columns, 1)[: weight.shape[0], : weight.shape[1]]
    if sparsity is not None:
        return ops.select_topk(weight.abs(), 1 - sparsity)
    return weight != 0
