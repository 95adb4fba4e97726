"""The Triton kernels of ``gate_norm``."""
