"""The CUDA ops on a machine without a GPU: ``evoprune_sim::<op>``, executed by the PTX simulator.

``build.py`` compiles csrc/cuda and csrc/ops_cuda against ``runtime.cpp`` (a CUDA runtime that hands every launch to
Python); ``gpu.py`` runs the launched kernel's PTX on the memory of the torch tensors, with every check on.
"""

from tests.simulated.build import reason
from tests.simulated.gpu import Gpu

__all__ = ["Gpu", "reason"]
