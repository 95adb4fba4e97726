// What the bindings of all linear ops share: x as padded rows of float, y, bias and activation.
#pragma once

#include <optional>

#include "ops/check.h"

namespace evoprune::binding {

inline Activation activation_of(const std::string& name) {
  static constexpr const char* kNames[] = {"none", "relu", "gelu", "gelu_tanh", "silu"};
  for (int i = 0; i < 5; ++i)
    if (name == kNames[i]) return static_cast<Activation>(i);
  STD_TORCH_CHECK(false, "expected activation none, relu, gelu, gelu_tanh or silu, got ", name);
}

inline bool is_prepared(const std::string& layout) {
  STD_TORCH_CHECK(layout == "cpu" || layout == "canonical",
                  "expected layout canonical or cpu, got ", layout);
  return layout == "cpu";
}

// What may be stored for x of its dtype: the same, int8 with a scale, or bfloat16 for float32.
inline void check_stored(const Tensor& values, const std::optional<Tensor>& scale,
                         const Tensor& x) {
  const ScalarType stored = values.scalar_type();
  const bool narrower = stored == ScalarType::BFloat16 && x.scalar_type() == ScalarType::Float;
  STD_TORCH_CHECK(stored == ScalarType::Char || narrower || stored == x.scalar_type(),
                  "values has dtype ", torch::headeronly::toString(stored), ", x has ",
                  torch::headeronly::toString(x.scalar_type()));
  STD_TORCH_CHECK(scale.has_value() == (stored == ScalarType::Char),
                  "expected a scale for values of int8 and for no others, got values of ",
                  torch::headeronly::toString(stored));
}

// The epilogue; bias and scale are made contiguous in place, so that the pointers live as long as
// they do.
inline Epilogue epilogue_of(std::optional<Tensor>& bias, std::optional<Tensor>& scale,
                            const Tensor& x, int64_t out_features, const std::string& activation) {
  Epilogue e{nullptr, DType::f32, activation_of(activation), nullptr, kernel_dtype(x, "x")};
  if (scale.has_value()) {
    STD_TORCH_CHECK(scale->dim() == 1 && scale->size(0) == out_features, "expected scale of ",
                    out_features, " entries, got ", scale->dim() == 1 ? scale->size(0) : -1);
    check_dtype(*scale, ScalarType::Float, "scale");
    if (!scale->is_contiguous()) scale = torch::stable::contiguous(*scale);
    e.scale = static_cast<const float*>(scale->const_data_ptr());
  }
  if (!bias.has_value()) return e;
  STD_TORCH_CHECK(bias->dim() == 1 && bias->size(0) == out_features, "expected bias of ",
                  out_features, " entries, got ", bias->dim() == 1 ? bias->size(0) : -1);
  e.bias_dtype = kernel_dtype(*bias, "bias");
  if (!bias->is_contiguous()) bias = torch::stable::contiguous(*bias);
  e.bias = bias->const_data_ptr();
  return e;
}

inline int64_t count_tokens(const Tensor& x) {
  int64_t tokens = 1;
  for (int64_t d = 0; d + 1 < x.dim(); ++d) tokens *= x.size(d);
  return tokens;
}

// y [..., out_features] in the dtype of x.
inline Tensor new_output(const Tensor& x, int64_t out_features) {
  int64_t sizes[64];
  STD_TORCH_CHECK(x.dim() <= 64, "x has ", x.dim(), " dimensions");
  for (int64_t d = 0; d + 1 < x.dim(); ++d) sizes[d] = x.size(d);
  sizes[x.dim() - 1] = out_features;
  return torch::stable::new_empty(x, {sizes, static_cast<size_t>(x.dim())});
}

}  // namespace evoprune::binding
