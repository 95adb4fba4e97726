// Activations [B, C, ...] as the channel kernels read them: layout, memory format, and the sums and
// coefficients beside them, which are float, or double where x is double ("wide").
#pragma once

#include "ops/check.h"

namespace evoprune::binding {

using torch::headeronly::MemoryFormat;

inline bool is_channels_last(const Tensor& x) {
  if (x.dim() != 4 || x.is_contiguous()) return false;
  int64_t expected = 1;
  for (const int dim : {1, 3, 2, 0}) {
    if (x.size(dim) != 1 && x.stride(dim) != expected) return false;
    expected *= x.size(dim);
  }
  return true;
}

inline Tensor in_order(const Tensor& x, bool channels_last) {
  return torch::stable::contiguous(
      x, channels_last ? MemoryFormat::ChannelsLast : MemoryFormat::Contiguous);
}

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
  STD_TORCH_CHECK(x.dim() >= 2, "expected x of 2 dimensions or more, got ", x.dim());
  int64_t inner = 1;
  for (int64_t dim = 2; dim < x.dim(); ++dim) inner *= x.size(dim);
  bool per_sample = false;
  if (gates != nullptr) {
    STD_TORCH_CHECK(gates->dim() == 1 || gates->dim() == 2,
                    "expected gates of 1 or 2 dimensions, got ", gates->dim());
    per_sample = gates->dim() == 2;
    if (per_sample) check_size(*gates, 0, x.size(0), "gates.size(0)");
    check_size(*gates, per_sample, x.size(1), "gates.size(-1)");
  }
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

inline void check_like(const Tensor& grad, const Tensor& x) {
  STD_TORCH_CHECK(grad.scalar_type() == x.scalar_type(), "grad has dtype ",
                  torch::headeronly::toString(grad.scalar_type()), ", expected ",
                  torch::headeronly::toString(x.scalar_type()));
  STD_TORCH_CHECK(grad.dim() == x.dim(), "expected grad of ", x.dim(), " dimensions, got ",
                  grad.dim());
  for (int64_t dim = 0; dim < x.dim(); ++dim) check_size(grad, dim, x.size(dim), "grad.size(dim)");
}

// parts [parts, channels] -> their sums, in order: a wide tensor of `sizes`, one number for each group
// and channel.
Tensor sum_parts(const Tensor& x, const ChannelLayout& l, const Tensor& parts,
                 torch::headeronly::IntHeaderOnlyArrayRef sizes);

}  // namespace evoprune::binding
