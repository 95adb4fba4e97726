// Launching a kernel: allowed the shared memory that it asks for, and its error checked.
#pragma once

#include "cuda/device.h"

namespace evoprune::cuda {

// kernel<<<grid, block, shared_bytes, stream>>>(arguments...)
template <typename... P, typename... A>
void launch(void (*kernel)(P...), dim3 grid, dim3 block, int shared_bytes, cudaStream_t stream,
            const A&... arguments) {
  constexpr int kWithoutAsking = 48 * 1024;
  if (shared_bytes > kWithoutAsking)
    check(cudaFuncSetAttribute(reinterpret_cast<const void*>(kernel),
                               cudaFuncAttributeMaxDynamicSharedMemorySize, shared_bytes),
          "shared memory");
  kernel<<<grid, block, static_cast<size_t>(shared_bytes), stream>>>(static_cast<P>(arguments)...);
  check(cudaGetLastError(), "kernel launch");
}

}  // namespace evoprune::cuda
