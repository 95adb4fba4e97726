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

void bitmask_linear(const BitmaskLinearArgs& args, const DeviceLimits& limits, cudaStream_t stream);

// The kernel for x of 16 bits; it is in bitmask_linear_mma.cu. Its work does not depend on the mask: for
// one token the list of bitmask_linear.cu is cheaper where less than one in kMmaKept is kept, but not
// for int8, of which the list has more to convert.
constexpr int kMmaKept = 8;
inline bool bitmask_takes_mma(const BitmaskLinearArgs& args) {
  if (args.dtype == DType::f32) return false;
  return args.tokens > 1 || args.stored == DType::i8 ||
         args.count >= args.rows * args.columns / kMmaKept;
}
void bitmask_linear_mma(const BitmaskLinearArgs& args, cudaStream_t stream);

}  // namespace evoprune::cuda
