"""Selections: scores or calibration data -> masks and layer budgets. One file each; nothing here packs a weight."""

from evoprune_kernels.selection.calibration import InputSums, calibrate
from evoprune_kernels.selection.ecoflap import ecoflap_budgets, layer_scores
from evoprune_kernels.selection.sparsegpt import sparsegpt_, sparsegpt_weight
from evoprune_kernels.selection.wanda import wanda_masks, wanda_scores

__all__ = [
    "InputSums",
    "calibrate",
    "ecoflap_budgets",
    "layer_scores",
    "sparsegpt_",
    "sparsegpt_weight",
    "wanda_masks",
    "wanda_scores",
]
