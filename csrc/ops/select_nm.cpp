// evoprune::select_nm on the CPU: checks, allocation, threads. The kernel is in cpu/select_nm.cpp.
#include "ops/check.h"
#include "select/nm.h"

namespace evoprune::binding {

Tensor select_nm(Tensor scores, int64_t n, int64_t m) {
  STD_TORCH_CHECK(scores.dim() == 2, "expected scores of 2 dimensions, got ", scores.dim());
  STD_TORCH_CHECK(1 <= n && n <= m && m <= select::kMaxGroup,
                  "expected 1 <= n <= m <= ", select::kMaxGroup, ", got n=", n, " m=", m);
  const Tensor s = torch::stable::contiguous(torch::stable::to(scores, ScalarType::Float));
  Tensor mask = torch::stable::new_empty(s, s.sizes(), ScalarType::Bool);
  const SelectNmArgs args{static_cast<const float*>(s.const_data_ptr()),
                          static_cast<uint8_t*>(mask.mutable_data_ptr()), s.size(1),
                          static_cast<int>(n), static_cast<int>(m)};
  run(kernels().select_nm, args, s.size(0), 16);
  return mask;
}

}  // namespace evoprune::binding

STABLE_TORCH_LIBRARY_IMPL(evoprune, CPU, m) {
  m.impl("select_nm", TORCH_BOX(&evoprune::binding::select_nm));
}
