// The first fault that a kernel finds in its input, by the order of a key; the host reads it back.
//
//   host    clear_fault -> launch -> read_fault      kernel   atomicMin(fault, key)
//
// The smallest key wins, so that the report does not depend on which block was first. read_fault
// waits for the stream: an op that has a fault to report cannot be captured in a CUDA graph.
#pragma once

#include "cuda/device.h"

namespace evoprune::cuda {

using Fault = unsigned long long;
inline constexpr Fault kNoFault = 0x7f7f7f7f7f7f7f7f;

inline void clear_fault(Fault* fault, cudaStream_t stream) {
  check(cudaMemsetAsync(fault, kNoFault & 0xff, sizeof(Fault), stream), "cudaMemsetAsync");
}
inline Fault read_fault(const Fault* fault, cudaStream_t stream) {
  Fault found = kNoFault;
  check(cudaMemcpyAsync(&found, fault, sizeof(Fault), cudaMemcpyDeviceToHost, stream),
        "cudaMemcpyAsync");
  check(cudaStreamSynchronize(stream), "cudaStreamSynchronize");
  return found;
}

}  // namespace evoprune::cuda
