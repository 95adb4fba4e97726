"""Selection: scores -> masks, and how many weights each layer keeps. Pure functions, one file a way to choose."""

from evoprune_kernels.selection.apply import BUDGETS, select_all
from evoprune_kernels.selection.bezier import bezier_proportions, select_bezier
from evoprune_kernels.selection.budgets import budget_counts, erk, proportional, uniform
from evoprune_kernels.selection.progressive import progressive_gap, progressive_names
from evoprune_kernels.selection.random import random_mask, random_scores
from evoprune_kernels.selection.regrowth import Regrowth, cosine_fraction, drop_and_grow
from evoprune_kernels.selection.rows import drop_sparse_rows
from evoprune_kernels.selection.threshold import rate_for, select_threshold, spread_ratio

__all__ = [
    "BUDGETS",
    "Regrowth",
    "bezier_proportions",
    "budget_counts",
    "cosine_fraction",
    "drop_and_grow",
    "drop_sparse_rows",
    "erk",
    "progressive_gap",
    "progressive_names",
    "proportional",
    "random_mask",
    "random_scores",
    "rate_for",
    "select_all",
    "select_bezier",
    "select_threshold",
    "spread_ratio",
    "uniform",
]
