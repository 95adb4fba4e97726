"""ptxsim: run the PTX of CUDA C++ and Triton kernels on the CPU, to test them where no GPU is."""

from .isa_mma import BadMetadata
from .isa_warp import Divergence
from .launch import LaunchError
from .machine import Device, ExecutionError
from .memory import MemoryFault, Pointer
from .parse import parse
from .races import RaceError
from .stats import Stats
from .syntax import Kernel, Module, PtxSyntaxError
from .values import Unsupported, bf16_to_f32, f32_to_bf16

__all__ = [
    "BadMetadata",
    "Device",
    "Divergence",
    "ExecutionError",
    "Kernel",
    "LaunchError",
    "MemoryFault",
    "Module",
    "Pointer",
    "PtxSyntaxError",
    "RaceError",
    "Stats",
    "Unsupported",
    "bf16_to_f32",
    "f32_to_bf16",
    "parse",
]
