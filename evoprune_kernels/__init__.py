"""Find a sparse sub-network during ordinary training, then really run it faster."""

from evoprune_kernels import formats, ops

__version__ = "0.1.0"
__all__ = ["formats", "ops"]
