"""Optimizers that prune while they train: drop-in replacements of torch's, with one more argument."""

from evoprune_kernels.optim.adamw import AdamW
from evoprune_kernels.optim.config import PruneConfig
from evoprune_kernels.optim.groups import prunable_groups
from evoprune_kernels.optim.sgd import SGD

__all__ = ["SGD", "AdamW", "PruneConfig", "prunable_groups"]
