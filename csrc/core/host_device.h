// One marker for small functions that the CPU and the CUDA kernels share. Always inlined, so that no
// ISA level can take another level's copy of a template from the linker.
#pragma once

#if defined(__CUDACC__)
#define EVOPRUNE_HD __host__ __device__ __forceinline__
#else
#define EVOPRUNE_HD inline __attribute__((always_inline))
#endif
