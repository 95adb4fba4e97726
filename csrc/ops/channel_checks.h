// Tensors [B, C, ...]: their memory format, and whether gates and gradients fit them.
#pragma once

#include "ops/check.h"

namespace evoprune::binding {

using torch::headeronly::MemoryFormat;

// Whether x is stored as [B, H, W, C] and not as [B, C, H, W] too.
inline bool is_channels_last(const Tensor& x) {
  if (x.dim() != 4 || x.is_contiguous()) return false;
  int64_t expected = 1;
  for (const int dim : {1, 3, 2, 0}) {
    if (x.size(dim) != 1 && x.stride(dim) != expected) return false;
    expected *= x.size(dim);
  }
  return true;
}

// What a result for x is stored in.
inline MemoryFormat memory_format(const Tensor& x) {
  return is_channels_last(x) ? MemoryFormat::ChannelsLast : MemoryFormat::Contiguous;
}

inline Tensor in_order(const Tensor& x, MemoryFormat format) {
  return torch::stable::contiguous(x, format);
}

inline void check_channels(const Tensor& x) {
  STD_TORCH_CHECK(x.dim() >= 2, "expected x of 2 dimensions or more, got ", x.dim());
}

// Values of a channel of one sample. Checked.
inline int64_t inner_of(const Tensor& x) {
  check_channels(x);
  int64_t inner = 1;
  for (int64_t dim = 2; dim < x.dim(); ++dim) inner *= x.size(dim);
  return inner;
}

// Whether gates are [B, C]; else they are [C]. Checked.
inline bool are_per_sample(const Tensor& gates, const Tensor& x) {
  STD_TORCH_CHECK(gates.dim() == 1 || gates.dim() == 2, "expected gates of 1 or 2 dimensions, got ",
                  gates.dim());
  const bool per_sample = gates.dim() == 2;
  if (per_sample) check_size(gates, 0, x.size(0), "gates.size(0)");
  check_size(gates, per_sample, x.size(1), "gates.size(-1)");
  return per_sample;
}

inline void check_like(const Tensor& grad, const Tensor& x) {
  check_dtype(grad, x.scalar_type(), "grad");
  STD_TORCH_CHECK(grad.dim() == x.dim(), "expected grad of ", x.dim(), " dimensions, got ",
                  grad.dim());
  for (int64_t dim = 0; dim < x.dim(); ++dim) check_size(grad, dim, x.size(dim), "grad.size(dim)");
}

}  // namespace evoprune::binding
