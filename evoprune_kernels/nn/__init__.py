"""Layers that train dense and run their packed weights in eval mode, and layers with gates."""

from evoprune_kernels.nn.compaction import Compacted, CompactionReport, compact
from evoprune_kernels.nn.conv import GatedBlock, GatedConv2d, GatedLinear
from evoprune_kernels.nn.conv1d import SparseConv1D, is_conv1d
from evoprune_kernels.nn.gate_losses import (
    bn_polarization,
    budget_loss,
    clamp_bn_scales_,
    polarization_loss,
)
from evoprune_kernels.nn.gate_model import GatingReport, gate_model_
from evoprune_kernels.nn.gate_norm import GateNorm2d, unfuse_gate_norm_
from evoprune_kernels.nn.gate_norm_model import FusionReport, fuse_gate_norm_
from evoprune_kernels.nn.gates import (
    ChannelGate,
    collect_statistics,
    freeze_gates,
    gate_statistics,
    gates_of,
    hard_gate,
    reset_gate_statistics,
)
from evoprune_kernels.nn.linear import SparseLinear
from evoprune_kernels.nn.sparse_conv import SparseConv2d
from evoprune_kernels.nn.ssprop import SSPropConv2d, SSPropLinear
from evoprune_kernels.nn.ssprop_model import ssprop_model_
from evoprune_kernels.nn.ssprop_schedule import SSPropSchedule

__all__ = [
    "ChannelGate",
    "Compacted",
    "CompactionReport",
    "FusionReport",
    "GateNorm2d",
    "GatedBlock",
    "GatedConv2d",
    "GatedLinear",
    "GatingReport",
    "SSPropConv2d",
    "SSPropLinear",
    "SSPropSchedule",
    "SparseConv1D",
    "SparseConv2d",
    "SparseLinear",
    "bn_polarization",
    "budget_loss",
    "clamp_bn_scales_",
    "collect_statistics",
    "compact",
    "freeze_gates",
    "fuse_gate_norm_",
    "gate_model_",
    "gate_statistics",
    "gates_of",
    "hard_gate",
    "is_conv1d",
    "polarization_loss",
    "reset_gate_statistics",
    "ssprop_model_",
    "unfuse_gate_norm_",
]
