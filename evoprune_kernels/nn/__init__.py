"""Layers that train dense and run their packed weights in eval mode."""

from evoprune_kernels.nn.conv1d import SparseConv1D, is_conv1d
from evoprune_kernels.nn.linear import SparseLinear
from evoprune_kernels.nn.ssprop import SSPropConv2d, SSPropLinear
from evoprune_kernels.nn.ssprop_model import ssprop_model_
from evoprune_kernels.nn.ssprop_schedule import SSPropSchedule

__all__ = [
    "SSPropConv2d",
    "SSPropLinear",
    "SSPropSchedule",
    "SparseConv1D",
    "SparseLinear",
    "is_conv1d",
    "ssprop_model_",
]
