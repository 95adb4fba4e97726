"""Find a sparse sub-network during ordinary training, then really run it faster."""

from evoprune_kernels import formats, methods, nn, ops, optim, selection
from evoprune_kernels.convert import ConversionReport, convert, export
from evoprune_kernels.inference import InferenceReport, optimize_for_inference
from evoprune_kernels.nn import SparseConv2d, SparseLinear
from evoprune_kernels.optim import PruneConfig

__version__ = "0.1.0"
__all__ = [
    "ConversionReport",
    "InferenceReport",
    "PruneConfig",
    "SparseConv2d",
    "SparseLinear",
    "convert",
    "export",
    "formats",
    "methods",
    "nn",
    "ops",
    "optim",
    "optimize_for_inference",
    "selection",
]
