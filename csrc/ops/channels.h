// Activations [B, C, ...] as the channel kernels read them: their layout, and the sums and coefficients
// beside them, which are float, or double where x is double ("wide").
#pragma once

#include "ops/channel_checks.h"

namespace evoprune::binding {

inline FloatType float_type(const Tensor& t, const char* what) {
  switch (t.scalar_type()) {
    case ScalarType::Float:
      return FloatType::f32;
    case ScalarType::BFloat16:
      return FloatType::bf16;
    case ScalarType::Half:
      return FloatType::f16;
    default:
      STD_TORCH_CHECK(t.scalar_type() == ScalarType::Double, what, " has dtype ",
                      torch::headeronly::toString(t.scalar_type()),
                      ", expected Float, BFloat16, Half or Double");
      return FloatType::f64;
  }
}

inline ScalarType wide_type(const Tensor& x) {
  return x.scalar_type() == ScalarType::Double ? ScalarType::Double : ScalarType::Float;
}
// The tensor as the kernels read coefficients: contiguous, and wide.
inline Tensor widened(const Tensor& t, ScalarType wide) {
  return torch::stable::contiguous(t.scalar_type() == wide ? t : torch::stable::to(t, wide));
}
inline Tensor narrowed(const Tensor& t, ScalarType type) {
  return t.scalar_type() == type ? t : torch::stable::to(t, type);
}

// All of a layout; `gates` may be null: one row of coefficients for all samples.
inline ChannelLayout channel_layout(const Tensor& x, const Tensor* gates) {
  const int64_t inner = inner_of(x);
  const bool per_sample = gates != nullptr && are_per_sample(*gates, x);
  // [B, C] is both, and quicker in rows
  const bool rows = inner == 1 || is_channels_last(x);
  return {float_type(x, "x"), rows, per_sample, x.size(0), x.size(1), inner};
}

// Units that are worth a thread of their own.
inline int64_t channel_grain(const ChannelLayout& l) {
  const int64_t unit = l.rows ? kRowBlock * l.channels : l.inner;
  return std::max<int64_t>(1, 32768 / std::max<int64_t>(1, unit));
}
template <typename Args>
void run_channels(void (*kernel)(const Args&, int64_t, int64_t), const Args& args) {
  run(kernel, args, args.layout.units(), channel_grain(args.layout));
}

// Calls sum.operator()<T>() with the type of sums.
template <typename Run>
void with_wide(ScalarType wide, Run sum) {
  wide == ScalarType::Double ? sum.template operator()<double>() : sum.template operator()<float>();
}
template <typename T>
T* data(Tensor& t) {
  return static_cast<T*>(t.mutable_data_ptr());
}
template <typename T>
const T* data(const Tensor& t) {
  return static_cast<const T*>(t.const_data_ptr());
}

inline Tensor new_wide(const Tensor& x, std::initializer_list<int64_t> sizes, bool zeros = false) {
  return zeros ? torch::stable::new_zeros(x, {sizes.begin(), sizes.size()}, wide_type(x))
               : torch::stable::new_empty(x, {sizes.begin(), sizes.size()}, wide_type(x));
}

// parts [parts, channels] -> their sums, in order: a wide tensor of `sizes`, one number for each group
// and channel.
Tensor sum_parts(const Tensor& x, const ChannelLayout& l, const Tensor& parts,
                 torch::headeronly::IntHeaderOnlyArrayRef sizes);

}  // namespace evoprune::binding
