"""Layer-progressive masks ("forward" pruning): one layer after another, from the input to the output.

step      gap      2 gap      3 gap  ...      layers * gap      steps
|          |         |          |                  |              |
dense     first    first 2   first 3     ...      all            all
"""

from __future__ import annotations

from collections.abc import Sequence

from evoprune_kernels._check import check


def progressive_gap(layers: int, steps: int) -> int:
    """Steps between one layer and the next.

    ``gap = max(1, floor(steps / layers))``

    Args:
        layers: how many layers get a mask, >= 1.
        steps: optimizer steps in which they all do, >= 1; the authors take the batches of all epochs but the last.

    Raises:
        ValueError: if ``layers`` or ``steps`` is below 1.

    Notes:
        With fewer steps than layers the gap is 1 and the last step masks what is left; the authors' code needs more
        steps than layers.

    Source:
        ``smart_prune`` of the authors' 2023 library.

    Example:
        >>> progressive_gap(layers=4, steps=90)
        22
    """
    check(layers >= 1, f"expected layers >= 1, got {layers}")
    check(steps >= 1, f"expected steps >= 1, got {steps}")
    return max(1, steps // layers)


def progressive_names(names: Sequence[str], step: int, steps: int) -> list[str]:
    """The layers that have their masks after ``step`` steps; the others stay dense.

    ``names[: floor(step / gap)]``, all of them from ``steps`` on

    Args:
        names: of the parameters with masks, from the input to the output.
        step: optimizer steps taken, >= 0.
        steps: steps after which every layer has its mask, >= 1.

    Returns:
        the first names.

    Raises:
        ValueError: if ``step < 0``, ``steps < 1`` or a name stands twice.

    Notes:
        The authors apply the masks only in the steps that are multiples of ``progressive_gap`` and count validation
        batches as well, so masked weights grow in between and the last layers wait for the end of the round. Applying
        ``progressive_names`` in every step holds them at zero instead.

    Source:
        ``train_mask_weight`` and ``smart_prune`` of the authors' 2023 library.

    Example:
        >>> [progressive_names(["conv1", "conv2", "head"], step, 9) for step in (2, 3, 8, 9)]
        [[], ['conv1'], ['conv1', 'conv2'], ['conv1', 'conv2', 'head']]
    """
    twice = sorted({name for name in names if names.count(name) > 1})
    check(not twice, f"expected every name once, got {twice} more than once")
    check(step >= 0, f"expected step >= 0, got {step}")
    check(steps >= 1, f"expected steps >= 1, got {steps}")
    if not names:
        return []
    masked = len(names) if step >= steps else step // progressive_gap(len(names), steps)
    return list(names[:masked])
