// Checks shared by the nm bindings.
#pragma once

#include <utility>

#include "core/nm_layout.h"
#include "ops/check.h"
#include "select/nm.h"

namespace evoprune::binding {

inline void check_nm(int64_t n, int64_t m) {
  STD_TORCH_CHECK(1 <= n && n <= m && m <= select::kMaxGroup,
                  "expected 1 <= n <= m <= ", select::kMaxGroup, ", got n=", n, " m=", m);
}

inline void check_matrix(const Tensor& t, int64_t rows, int64_t columns, const char* what) {
  STD_TORCH_CHECK(t.dim() == 2 && t.size(0) == rows && t.size(1) == columns, "expected ", what,
                  " of shape [", rows, ", ", columns, "], got ", t.dim(), " dimensions [",
                  t.dim() > 0 ? t.size(0) : -1, ", ", t.dim() > 1 ? t.size(1) : -1, "]");
}

inline void check_shared(int64_t shared) {
  STD_TORCH_CHECK(shared == 1 || shared == kNmTile, "expected shared = 1 or ", kNmTile, ", got ",
                  shared);
}
// Whether the columns of shared rows are uint16; every column is below in_features + m.
inline bool nm_narrow(int64_t in_features, int64_t m) {
  return in_features + m <= 1 << 16;
}

// The prepared tensors of canonical ones; in ops/nm_prepare.cpp.
std::pair<Tensor, Tensor> nm_prepare(Tensor values, Tensor meta, int64_t n, int64_t m,
                                     int64_t shared, int64_t in_features);

}  // namespace evoprune::binding
