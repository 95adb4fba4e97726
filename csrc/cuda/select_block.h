// select_block on the device; see select_block.cu.
#pragma once

#include "cuda/radix_select.h"

namespace evoprune::cuda {

struct SelectBlockArgs {
  const void* scores;  // [rows, columns]
  uint8_t* mask;       // [rows, columns], 0 or 1
  DType dtype;
  int64_t rows, columns;
  int64_t bn, bk;  // of a block, at most rows and columns
  int64_t keep;    // how many blocks: above 0, below all
};

// Bytes of scratch memory, aligned to 8.
int64_t select_block_workspace(const SelectBlockArgs& args, const DeviceLimits& limits);
void select_block(const SelectBlockArgs& args, const DeviceLimits& limits, void* scratch,
                  cudaStream_t stream);

}  // namespace evoprune::cuda
