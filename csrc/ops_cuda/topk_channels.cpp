// evoprune::topk_channels on CUDA: checks and allocation. The kernel is in cuda/topk_channels.cu.
#include "cuda/topk_channels.h"

#include <limits>

#include "ops_cuda/check.h"

namespace evoprune::binding_cuda {

Tensor topk_channels(Tensor scores, int64_t k) {
  STD_TORCH_CHECK(scores.dim() == 1 || scores.dim() == 2,
                  "expected scores of 1 or 2 dimensions, got ", scores.dim());
  const bool rows_given = scores.dim() == 2;
  const int64_t rows = rows_given ? scores.size(0) : 1, channels = scores.size(rows_given);
  STD_TORCH_CHECK(0 <= k && k <= channels, "expected 0 <= k <= ", channels, ", got k=", k);
  const DType dtype = kernel_dtype(scores, "scores");
  Call call(scores, {});
  const int64_t most = cuda::topk_channels_most(call.limits());
  STD_TORCH_CHECK(channels <= most, "the CUDA kernel ranks at most ", most, " channels, got ",
                  channels);
  STD_TORCH_CHECK(rows <= std::numeric_limits<int32_t>::max(),
                  "expected at most 2^31 - 1 rows, got ", rows);
  scores = torch::stable::contiguous(scores);
  Tensor indices = rows_given ? empty_like(scores, {rows, k}, ScalarType::Long)
                              : empty_like(scores, {k}, ScalarType::Long);
  if (indices.numel() == 0) return indices;
  cuda::topk_channels({input(scores), output<int64_t>(indices), dtype, rows,
                       static_cast<int>(channels), static_cast<int>(k)},
                      call.stream());
  return indices;
}

}  // namespace evoprune::binding_cuda

EVOPRUNE_CUDA_LIBRARY(m) {
  m.impl("topk_channels", TORCH_BOX(&evoprune::binding_cuda::topk_channels));
}
