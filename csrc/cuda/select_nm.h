// select_nm on the device; the kernel is in select_nm.cu.
#pragma once

#include "cuda/device.h"

namespace evoprune::cuda {

struct SelectNmArgs {
  const void* scores;  // [rows, columns]
  uint8_t* mask;       // [rows, columns], 0 or 1
  DType dtype;
  int64_t rows, columns;
  int n, m;
};

void select_nm(const SelectNmArgs& args, cudaStream_t stream);

}  // namespace evoprune::cuda
