// Shapes, devices and strides of tensors: equality, density, overlap, and words for messages.
#pragma once

#include <utility>
#include <vector>

#include "ops/check.h"

namespace evoprune::binding {

inline std::string shape_of(const Tensor& t) {
  std::string text = "[";
  for (int64_t d = 0; d < t.dim(); ++d) text += (d ? ", " : "") + std::to_string(t.size(d));
  return text + "]";
}

inline std::string device_of(const Tensor& t) {
  return t.is_cpu() ? "the CPU" : "device " + std::to_string(t.get_device_index());
}

inline bool same_device(const Tensor& a, const Tensor& b) {
  return a.is_cpu() == b.is_cpu() && a.get_device_index() == b.get_device_index();
}

inline bool same_shape(const Tensor& a, const Tensor& b) {
  if (a.dim() != b.dim()) return false;
  for (int64_t d = 0; d < a.dim(); ++d)
    if (a.size(d) != b.size(d)) return false;
  return true;
}

inline bool same_layout(const Tensor& a, const Tensor& b) {  // of two tensors of one shape
  for (int64_t d = 0; d < a.dim(); ++d)
    if (a.size(d) > 1 && a.stride(d) != b.stride(d)) return false;
  return true;
}

using Dims = std::vector<std::pair<int64_t, int64_t>>;

inline Dims dims_by_stride(const Tensor& t) {  // (stride, size) where size > 1, smallest first
  Dims dims;
  for (int64_t d = 0; d < t.dim(); ++d)
    if (t.size(d) > 1) dims.emplace_back(t.stride(d), t.size(d));
  std::sort(dims.begin(), dims.end());
  return dims;
}

inline bool is_dense(const Tensor& t) {  // the elements fill one range of memory, each once
  int64_t expected = 1;
  for (const auto& [stride, size] : dims_by_stride(t)) {
    if (stride != expected) return false;
    expected *= size;
  }
  return true;
}

inline bool overlaps_itself(const Tensor& t) {
  int64_t covered = 0;  // the largest offset that the smaller strides reach
  for (const auto& [stride, size] : dims_by_stride(t)) {
    if (stride <= covered) return true;
    covered += stride * (size - 1);
  }
  return false;
}

}  // namespace evoprune::binding
