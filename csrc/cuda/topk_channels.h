// topk_channels on the device; the kernel is in topk_channels.cu.
#pragma once

#include "cuda/device.h"

namespace evoprune::cuda {

struct TopkChannelsArgs {
  const void* scores;  // [rows, channels]
  int64_t* indices;    // [rows, k], ascending
  DType dtype;
  int64_t rows;
  int channels, k;
};

// The most channels that a block can rank: 4 bytes of shared memory each.
int64_t topk_channels_most(const DeviceLimits& limits);
void topk_channels(const TopkChannelsArgs& args, cudaStream_t stream);

}  // namespace evoprune::cuda
