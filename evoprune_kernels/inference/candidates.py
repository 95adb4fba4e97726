"""Which sparse forms a weight's zeros allow, and which of those are worth timing."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

from evoprune_kernels.formats import NM, Block, Pattern, Unstructured
from evoprune_kernels.nn.masks import block_counts, group_counts
from evoprune_kernels.nn.packed import MAX_DENSITY

GROUPS = (NM(1, 4, 16), NM(2, 4, 16), NM(1, 4), NM(2, 4))
BLOCKS = (Block(64, 64), Block(32, 32), Block(16, 16), Block(16, 1))
#: unstructured weights are worth a try below this density, and below the second one for few tokens, where bytes decide
UNSTRUCTURED_DENSITY = 0.35
FEW_TOKENS = 4
FEW_TOKENS_DENSITY = 0.6
#: blocks must not store much more than the weight's non-zeros
BLOCK_WASTE = 1.2
MAX_BLOCK_PATTERNS = 2


def stored_density(keep: Tensor, pattern: Pattern) -> float | None:
    """The share of the weight that ``pattern`` stores for this mask [N, K], or None if the mask breaks it."""
    if isinstance(pattern, NM):
        fits = bool((group_counts(keep, pattern.m, pattern.shared) <= pattern.n).all())
        return pattern.n / pattern.m if fits else None
    if isinstance(pattern, Block):
        kept, _ = block_counts(keep, pattern.rows, pattern.columns)
        return float((kept > 0).float().mean())
    return float(keep.float().mean())


def candidates(
    weight: Tensor, fewest_tokens: int, asked: Sequence[Pattern] | None, own: Pattern | None
) -> tuple[list[Pattern], str | None]:
    """The patterns to time for a weight [N, K], or none and the reason.

    Args:
        weight: [N, K].
        fewest_tokens: of the layer's calls.
        asked: the only patterns to look at; None looks at all that may pay.
        own: the pattern of a layer that is sparse already; always tried.
    """
    keep = weight != 0
    density = float(keep.float().mean())
    if density > MAX_DENSITY:
        return [], f"its weight has no zeros to skip ({density:.0%} are kept)"
    if asked is not None:
        fitting = [
            p for p in asked if (d := stored_density(keep, p)) is not None and d <= MAX_DENSITY
        ]
        names = ", ".join(map(str, asked))
        return fitting, None if fitting else f"its zeros ({1 - density:.0%}) do not fit {names}"
    found: list[Pattern] = [p for p in GROUPS if stored_density(keep, p) is not None]
    blocks: list[Pattern] = []
    for block in BLOCKS:
        stored = stored_density(keep, block)
        if stored is not None and stored <= min(density * BLOCK_WASTE + 0.01, MAX_DENSITY):
            blocks.append(block)
    found += blocks[:MAX_BLOCK_PATTERNS]
    limit = FEW_TOKENS_DENSITY if fewest_tokens <= FEW_TOKENS else UNSTRUCTURED_DENSITY
    if density <= limit:
        found.append(Unstructured())
    if own is not None and own not in found and stored_density(keep, own) is not None:
        found.append(own)
    zeros = f"its zeros ({1 - density:.0%}) fit no n:m group or block and are too few for an unstructured kernel"
    return found, None if found else zeros
