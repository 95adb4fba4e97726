"""Find a sparse sub-network during ordinary training, then really run it faster."""

from evoprune_kernels import formats, ops, optim
from evoprune_kernels.optim import PruneConfig

__version__ = "0.1.0"
__all__ = ["PruneConfig", "formats", "ops", "optim"]
