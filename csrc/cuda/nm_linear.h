// nm_linear on the device, for a 2:4 weight in the layout "cuda" (core/nm_cuda_layout.h).
//
//   nm_linear       nm_linear.cu       tensor cores (mma.sp), f16 and bf16, any number of tokens
//   nm_linear_few   nm_linear_few.cu   streams the weight once, no tensor core: few tokens (up to
//                                      kFewTokens at a time), values of f32, f16, bf16 or int8
#pragma once

#include "cuda/epilogue.h"

namespace evoprune::cuda {

struct NmLinearArgs {
  const void* x;         // [tokens, columns]
  const void* values;    // [rows64, columns64 / 2]
  const uint32_t* meta;  // [rows64/64, columns64/64, 32, 4]
  void* y;               // [tokens, rows]
  DType dtype, stored;   // of x and y; of values
  int64_t tokens, rows, columns;
  Epilogue epilogue;
};

inline constexpr int kFewTokens = 16;

// Bytes of scratch memory that nm_linear needs, for split sums.
int64_t nm_linear_workspace(const NmLinearArgs& args, const DeviceLimits& limits);
void nm_linear(const NmLinearArgs& args, const DeviceLimits& limits, void* workspace,
               cudaStream_t stream);
void nm_linear_few(const NmLinearArgs& args, const DeviceLimits& limits, cudaStream_t stream);

}  // namespace evoprune::cuda
