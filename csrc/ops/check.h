// Checks and small helpers shared by the op bindings. Messages name the argument and hold both
// values.
#pragma once

#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>
#include <torch/headeronly/core/ScalarType.h>

#include <algorithm>
#include <string>

#include "cpu/kernels.h"

namespace evoprune::binding {

using torch::headeronly::ScalarType;
using torch::stable::Tensor;

inline void check_size(const Tensor& t, int64_t dim, int64_t expected, const char* what) {
  STD_TORCH_CHECK(t.dim() > dim && t.size(dim) == expected, "expected ", what, " = ", expected,
                  ", got ", t.dim() > dim ? t.size(dim) : -1);
}
inline void check_dtype(const Tensor& t, ScalarType expected, const char* what) {
  STD_TORCH_CHECK(t.scalar_type() == expected, what, " has dtype ",
                  torch::headeronly::toString(t.scalar_type()), ", expected ",
                  torch::headeronly::toString(expected));
}
inline void check_contiguous(const Tensor& t, const char* what) {
  STD_TORCH_CHECK(t.is_contiguous(), what, " must be contiguous");
}
inline DType kernel_dtype(const Tensor& t, const char* what) {
  if (t.scalar_type() == ScalarType::Float) return DType::f32;
  STD_TORCH_CHECK(t.scalar_type() == ScalarType::BFloat16, what, " has dtype ",
                  torch::headeronly::toString(t.scalar_type()), ", expected Float or BFloat16");
  return DType::bf16;
}
// The dtype of a weight's stored values: those of kernel_dtype, or int8.
inline DType stored_dtype(const Tensor& t) {
  return t.scalar_type() == ScalarType::Char ? DType::i8 : kernel_dtype(t, "values");
}
// Runs kernel(args, begin, end) over `units` independent work units, in chunks of at least `grain`.
template <typename Args>
void run(void (*kernel)(const Args&, int64_t, int64_t), const Args& args, int64_t units,
         int64_t grain) {
  if (units <= 0) return;
  if (units <= grain) return kernel(args, 0, units);
  torch::stable::parallel_for(0, units, std::max<int64_t>(grain, 1),
                              [&](int64_t begin, int64_t end) { kernel(args, begin, end); });
}

}  // namespace evoprune::binding
