// select_nm_transposable on the device; the kernel is in select_nm_transposable.cu.
#pragma once

#include "cuda/device.h"

namespace evoprune::cuda {

struct SelectTransposableArgs {
  const void* scores;  // [rows, columns]
  uint8_t* mask;       // [rows, columns], 0 or 1
  DType dtype;
  int64_t rows, columns;
};

void select_nm_transposable(const SelectTransposableArgs& args, cudaStream_t stream);

}  // namespace evoprune::cuda
