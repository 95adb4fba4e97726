// bitmask_linear on the device, for the canonical tensors; the kernel is in bitmask_linear.cu.
#pragma once

#include "cuda/epilogue.h"

namespace evoprune::cuda {

struct BitmaskLinearArgs {
  const void* x;           // [tokens, columns]
  const void* values;      // [count]
  const uint8_t* bits;     // [rows, ceil(columns / 8)]
  const int32_t* row_ptr;  // [rows + 1]
  void* y;                 // [tokens, rows]
  DType dtype, stored;     // of x and y; of values
  int64_t tokens, rows, columns, count;
  Epilogue epilogue;
};

void bitmask_linear(const BitmaskLinearArgs& args, const DeviceLimits& limits, cudaStream_t stream);

}  // namespace evoprune::cuda
