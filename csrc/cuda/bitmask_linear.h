// bitmask_linear on the device, for the canonical tensors.
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

void bitmask_linear(const BitmaskLinearArgs& args, cudaStream_t stream);

// Its kernel for several tokens of 16 bits, in bitmask_linear_mma.cu.
inline bool bitmask_takes_mma(const BitmaskLinearArgs& args) {
  return args.dtype != DType::f32 && args.tokens > 1;
}
void bitmask_linear_mma(const BitmaskLinearArgs& args, cudaStream_t stream);

}  // namespace evoprune::cuda
