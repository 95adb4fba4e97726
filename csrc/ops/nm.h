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

// The prepared tensors of canonical ones; in ops/nm_prepare.cpp.
std::pair<Tensor, Tensor> nm_prepare(Tensor values, Tensor meta, int64_t n, int64_t m,
                                     int64_t in_features);

}  // namespace evoprune::binding
