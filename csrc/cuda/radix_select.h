// Exact selection of the k highest of many scores: its arguments. The kernels are in
// radix_select.cuh, compiled by the ops that use them.
#pragma once

#include "cuda/device.h"

namespace evoprune::cuda {

// One tensor of the list that is ranked; its scores as bits.
struct RankedTensor {
  const void* scores;
  uint8_t* mask;  // 0 or 1
  int64_t size;
};

struct RadixSelectArgs {
  const RankedTensor* tensors;  // of the host
  int64_t count, keep;          // tensors; how many scores are kept of all: above 0, below all
};

// How the scores are cut: blocks of `chunk` scores, none across two tensors.
struct RadixPlan {
  int64_t chunk, blocks, bytes;  // bytes: of scratch memory
};

// All or nothing is kept: no score is read.
inline void fill_masks(const RadixSelectArgs& args, cudaStream_t stream) {
  for (int64_t i = 0; i < args.count; ++i)
    if (args.tensors[i].size > 0)
      check(cudaMemsetAsync(args.tensors[i].mask, args.keep > 0,
                            static_cast<size_t>(args.tensors[i].size), stream),
            "cudaMemsetAsync");
}

}  // namespace evoprune::cuda
