"""Selection: scores -> masks, and how many weights each layer keeps. Pure functions, one file a way to choose."""

from evoprune_kernels.selection.threshold import rate_for, select_threshold, spread_ratio

__all__ = [
    "rate_for",
    "select_threshold",
    "spread_ratio",
]
