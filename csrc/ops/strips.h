// What the bindings of block and bitmask share: the prepared weight, checked, and its product.
#pragma once

#include <optional>
#include <tuple>

#include "ops/linear.h"

namespace evoprune::binding {

// The layout "cpu" of cpu/strips.h.
struct Prepared {
  Tensor values, row_ptr, columns;
};

struct Shape {
  int64_t out_features, in_features;
};

// Canonical tensors -> Prepared, checked; RuntimeError where an index is out of range.
Prepared block_prepare(const Tensor& values, const Tensor& row_ptr, const Tensor& col_idx,
                       Shape shape);
Prepared bitmask_prepare(const Tensor& values, const Tensor& bits, const Tensor& row_ptr,
                         int64_t in_features);

// A block weight in strips, prepared and checked; `args` holds strip and bk.
struct BlockStrips {
  Prepared weight;
  StripArgs args;
};
BlockStrips block_strips(const Prepared& weight, Shape shape, int64_t bn, int64_t bk,
                         const std::string& layout);
Tensor block_linear(Tensor x, Tensor values, Tensor row_ptr, Tensor col_idx,
                    std::optional<Tensor> bias, int64_t out_features, int64_t in_features,
                    int64_t bn, int64_t bk, std::string activation, std::string layout,
                    std::optional<Tensor> scale);

using StripKernel = void (*)(const StripArgs&, int64_t, int64_t);

// y = act(x W^T + b); `args` holds strip, bk, narrow and the epilogue already, and `padded` where
// columns may lie beyond whole entries.
Tensor strip_linear(const Tensor& x, const Prepared& weight, Shape shape, StripArgs args,
                    StripKernel kernel);

inline void check_shape(const Shape& s) {
  STD_TORCH_CHECK(s.out_features >= 0 && s.in_features >= 0, "expected sizes of 0 or more, got ",
                  s.out_features, " and ", s.in_features);
}
inline int64_t ceil_div(int64_t a, int64_t b) {
  return (a + b - 1) / b;
}
template <typename T>
const T* data_of(const Tensor& t) {
  return static_cast<const T*>(t.const_data_ptr());
}

// row_ptr int32 [rows + 1] runs from 0 to count and never falls.
inline void check_row_ptr(const Tensor& row_ptr, int64_t rows, int64_t count) {
  check_dtype(row_ptr, ScalarType::Int, "row_ptr");
  STD_TORCH_CHECK(row_ptr.dim() == 1, "expected row_ptr of 1 dimension, got ", row_ptr.dim());
  check_size(row_ptr, 0, rows + 1, "row_ptr.size(0)");
  check_contiguous(row_ptr, "row_ptr");
  const int32_t* p = data_of<int32_t>(row_ptr);
  bool falls = p[0] != 0 || p[rows] != count;
  for (int64_t r = 0; r < rows; ++r) falls |= p[r + 1] < p[r];
  STD_TORCH_CHECK(!falls, "row_ptr must rise from 0 to ", count, ", got ", p[0], " to ", p[rows]);
}

}  // namespace evoprune::binding
