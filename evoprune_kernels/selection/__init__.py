"""Selection: scores or calibration data -> masks, and how many weights each layer keeps. One file a way to choose."""

from evoprune_kernels.selection.apply import BUDGETS, select_all
from evoprune_kernels.selection.bezier import bezier_proportions, select_bezier
from evoprune_kernels.selection.budgets import budget_counts, erk, proportional, uniform
from evoprune_kernels.selection.calibration import InputSums, calibrate
from evoprune_kernels.selection.ecoflap import ecoflap_budgets, layer_scores
from evoprune_kernels.selection.progressive import progressive_gap, progressive_names
from evoprune_kernels.selection.random import random_mask, random_scores
from evoprune_kernels.selection.regrowth import Regrowth, cosine_fraction, drop_and_grow
from evoprune_kernels.selection.rows import drop_sparse_rows
from evoprune_kernels.selection.sparsegpt import sparsegpt_, sparsegpt_weight
from evoprune_kernels.selection.threshold import rate_for, select_threshold, spread_ratio
from evoprune_kernels.selection.wanda import wanda_masks, wanda_scores

__all__ = [
    "BUDGETS",
    "InputSums",
    "Regrowth",
    "bezier_proportions",
    "budget_counts",
    "calibrate",
    "cosine_fraction",
    "drop_and_grow",
    "drop_sparse_rows",
    "ecoflap_budgets",
    "erk",
    "layer_scores",
    "progressive_gap",
    "progressive_names",
    "proportional",
    "random_mask",
    "random_scores",
    "rate_for",
    "select_all",
    "select_bezier",
    "select_threshold",
    "sparsegpt_",
    "sparsegpt_weight",
    "spread_ratio",
    "uniform",
    "wanda_masks",
    "wanda_scores",
]
