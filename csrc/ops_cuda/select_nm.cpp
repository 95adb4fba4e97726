// evoprune::select_nm on CUDA: checks and allocation. The kernel is in cuda/select_nm.cu.
#include "cuda/select_nm.h"

#include "ops_cuda/check.h"
#include "select/nm.h"

namespace evoprune::binding_cuda {

Tensor select_nm(Tensor scores, int64_t n, int64_t m) {
  STD_TORCH_CHECK(1 <= n && n <= m && m <= select::kMaxGroup,
                  "expected 1 <= n <= m <= ", select::kMaxGroup, ", got n=", n, " m=", m);
  STD_TORCH_CHECK(scores.dim() == 2, "expected scores of 2 dimensions, got ", scores.dim());
  const DType dtype = kernel_dtype(scores, "scores");
  const int64_t rows = scores.size(0), columns = scores.size(1);
  Call call(scores, {});
  scores = torch::stable::contiguous(scores);
  Tensor mask = empty_like(scores, {rows, columns}, ScalarType::Bool);
  cuda::select_nm({input(scores), output<uint8_t>(mask), dtype, rows, columns, static_cast<int>(n),
                   static_cast<int>(m)},
                  call.stream());
  return mask;
}

}  // namespace evoprune::binding_cuda

EVOPRUNE_CUDA_LIBRARY(m) {
  m.impl("select_nm", TORCH_BOX(&evoprune::binding_cuda::select_nm));
}
