"""The ops: one folder each; schemas are defined on import, then the native library adds its kernels."""

from evoprune_kernels import _ext
from evoprune_kernels.ops._op import OPS, Case, Op
from evoprune_kernels.ops.select_block import select_block
from evoprune_kernels.ops.select_nm import select_nm
from evoprune_kernels.ops.select_topk import select_topk

_ext.load()

__all__ = ["OPS", "Case", "Op", "select_block", "select_nm", "select_topk"]
