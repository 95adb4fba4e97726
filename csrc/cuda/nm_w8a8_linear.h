// nm_w8a8_linear on the device: a 2:4 weight of int8 values times tokens that are rounded to int8.
#pragma once

#include "cuda/nm_linear.h"

namespace evoprune::cuda {

// Bytes of scratch memory: x rounded, its scales, and split sums.
int64_t nm_w8a8_workspace(const NmLinearArgs& args, const DeviceLimits& limits);
void nm_w8a8_linear(const NmLinearArgs& args, const DeviceLimits& limits, void* workspace,
                    cudaStream_t stream);

}  // namespace evoprune::cuda
