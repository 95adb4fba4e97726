// What the CUDA bindings of the linear ops share: bias, scale and activation, tokens and output.
#pragma once

#include "cuda/epilogue.h"
#include "ops/linear.h"
#include "ops_cuda/check.h"

namespace evoprune::binding_cuda {

using binding::activation_of;
using binding::count_tokens;
using binding::new_output;

inline void check_layout(const std::string& layout, const char* expected) {
  STD_TORCH_CHECK(layout == expected, "the CUDA kernel takes the layout ", expected, ", got ",
                  layout);
}

// Of the values: that of x, or int8 with a scale.
inline DType stored_dtype(const Tensor& values, const std::optional<Tensor>& scale, DType x) {
  const bool eight_bit = values.scalar_type() == ScalarType::Char;
  STD_TORCH_CHECK(scale.has_value() == eight_bit,
                  "expected a scale for values of int8 and for no others, got values of ",
                  torch::headeronly::toString(values.scalar_type()));
  if (eight_bit) return DType::i8;
  const DType stored = kernel_dtype(values, "values");
  STD_TORCH_CHECK(stored == x, "values has dtype ",
                  torch::headeronly::toString(values.scalar_type()), ", x another");
  return stored;
}

// Of scale and bias, which must live as long as the result.
inline cuda::Epilogue epilogue_of(const std::optional<Tensor>& bias,
                                  const std::optional<Tensor>& scale, int64_t out_features,
                                  const std::string& activation) {
  cuda::Epilogue e{nullptr, nullptr, DType::f32, activation_of(activation)};
  if (scale.has_value()) {
    check_size(*scale, 0, out_features, "scale.size(0)");
    check_dtype(*scale, ScalarType::Float, "scale");
    check_contiguous(*scale, "scale");
    e.scale = input<float>(*scale);
  }
  if (bias.has_value()) {
    check_size(*bias, 0, out_features, "bias.size(0)");
    e.bias_dtype = kernel_dtype(*bias, "bias");
    check_contiguous(*bias, "bias");
    e.bias = input(*bias);
  }
  return e;
}

}  // namespace evoprune::binding_cuda
