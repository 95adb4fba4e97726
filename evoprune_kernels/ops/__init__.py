"""The ops: one folder each; schemas are defined on import, then the native libraries and Triton add their kernels."""

from evoprune_kernels import _ext
from evoprune_kernels.ops import _triton
from evoprune_kernels.ops._op import OPS, Case, Op
from evoprune_kernels.ops.adamw_step import adamw_step_
from evoprune_kernels.ops.bitmask_linear import bitmask_linear
from evoprune_kernels.ops.bitmask_pack import bitmask_pack, bitmask_unpack
from evoprune_kernels.ops.bitmask_prepare import bitmask_prepare
from evoprune_kernels.ops.block_conv2d import block_conv2d
from evoprune_kernels.ops.block_linear import block_linear
from evoprune_kernels.ops.block_pack import block_pack, block_unpack
from evoprune_kernels.ops.block_prepare import block_prepare
from evoprune_kernels.ops.channel_gate import channel_gate
from evoprune_kernels.ops.gate_norm import gate_norm
from evoprune_kernels.ops.gather_channels import gather_channels, scatter_channels
from evoprune_kernels.ops.nm_conv2d import nm_conv2d
from evoprune_kernels.ops.nm_linear import nm_linear
from evoprune_kernels.ops.nm_pack import nm_pack, nm_unpack
from evoprune_kernels.ops.nm_prepare import nm_prepare
from evoprune_kernels.ops.nm_prepare_cuda import nm_prepare_cuda
from evoprune_kernels.ops.nm_select_pack import nm_select_pack
from evoprune_kernels.ops.nm_w8a8_linear import nm_w8a8_linear
from evoprune_kernels.ops.prepare import linear, prepare
from evoprune_kernels.ops.select_block import select_block
from evoprune_kernels.ops.select_nm import select_nm
from evoprune_kernels.ops.select_nm_transposable import select_nm_transposable
from evoprune_kernels.ops.select_topk import select_topk
from evoprune_kernels.ops.select_topk_global import select_topk_global
from evoprune_kernels.ops.sgd_step import sgd_step_
from evoprune_kernels.ops.topk_channels import topk_abs_channels, topk_channels
from evoprune_kernels.ops.w8a8_linear import w8a8_linear
from evoprune_kernels.ops.w8a8_prepare import w8a8_picks, w8a8_prepare

_ext.load()
_triton.register()

__all__ = [
    "OPS",
    "Case",
    "Op",
    "adamw_step_",
    "bitmask_linear",
    "bitmask_pack",
    "bitmask_prepare",
    "bitmask_unpack",
    "block_conv2d",
    "block_linear",
    "block_pack",
    "block_prepare",
    "block_unpack",
    "channel_gate",
    "gate_norm",
    "gather_channels",
    "linear",
    "nm_conv2d",
    "nm_linear",
    "nm_pack",
    "nm_prepare",
    "nm_prepare_cuda",
    "nm_select_pack",
    "nm_unpack",
    "nm_w8a8_linear",
    "prepare",
    "scatter_channels",
    "select_block",
    "select_nm",
    "select_nm_transposable",
    "select_topk",
    "select_topk_global",
    "sgd_step_",
    "topk_abs_channels",
    "topk_channels",
    "w8a8_linear",
    "w8a8_picks",
    "w8a8_prepare",
]
