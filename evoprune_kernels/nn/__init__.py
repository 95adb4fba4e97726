"""Layers that train dense and run their packed weights in eval mode."""

from evoprune_kernels.nn.conv1d import SparseConv1D, is_conv1d
from evoprune_kernels.nn.linear import SparseLinear

__all__ = ["SparseConv1D", "SparseLinear", "is_conv1d"]
