// evoprune::select_nm_transposable on CUDA: checks and allocation. The kernel is in
// cuda/select_nm_transposable.cu.
#include "cuda/select_nm_transposable.h"

#include "ops_cuda/check.h"

namespace evoprune::binding_cuda {

Tensor select_nm_transposable(Tensor scores) {
  STD_TORCH_CHECK(scores.dim() == 2, "expected scores of 2 dimensions, got ", scores.dim());
  const DType dtype = kernel_dtype(scores, "scores");
  const int64_t rows = scores.size(0), columns = scores.size(1);
  const int64_t tiles = cuda::ceil_div(rows, 4) * cuda::ceil_div(columns, 4);
  STD_TORCH_CHECK(tiles <= INT32_MAX, "expected at most ", INT32_MAX, " tiles of 4 x 4, got ",
                  tiles);
  Call call(scores, {});
  scores = torch::stable::contiguous(scores);
  Tensor mask = empty_like(scores, {rows, columns}, ScalarType::Bool);
  cuda::select_nm_transposable({input(scores), output<uint8_t>(mask), dtype, rows, columns},
                               call.stream());
  return mask;
}

}  // namespace evoprune::binding_cuda

EVOPRUNE_CUDA_LIBRARY(m) {
  m.impl("select_nm_transposable", TORCH_BOX(&evoprune::binding_cuda::select_nm_transposable));
}
