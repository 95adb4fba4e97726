// What the CUDA bindings of 2:4 weights in the layout "cuda" share.
#pragma once

#include "core/nm_cuda_layout.h"
#include "ops_cuda/linear.h"

namespace evoprune::binding_cuda {

inline void check_packed(const Tensor& values, const Tensor& meta, int64_t rows, int64_t columns) {
  const int64_t rows64 = nm_cuda_padded(rows), columns64 = nm_cuda_padded(columns);
  check_size(values, 0, rows64, "values.size(0)");
  check_size(values, 1, columns64 / 2, "values.size(1)");
  check_contiguous(values, "values");
  check_dtype(meta, ScalarType::Int, "meta");
  STD_TORCH_CHECK(meta.numel() == rows64 * columns64 / 32, "expected meta of ",
                  rows64 * columns64 / 32, " words, got ", meta.numel());
  check_contiguous(meta, "meta");
}

}  // namespace evoprune::binding_cuda
