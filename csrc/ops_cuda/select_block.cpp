// evoprune::select_block on CUDA: checks and allocation. The kernels are in cuda/select_block.cu.
#include "cuda/select_block.h"

#include <algorithm>

#include "ops_cuda/ranked.h"

namespace evoprune::binding_cuda {

Tensor select_block(Tensor scores, int64_t bn, int64_t bk, double density) {
  STD_TORCH_CHECK(scores.dim() == 2, "expected scores of 2 dimensions, got ", scores.dim());
  STD_TORCH_CHECK(bn >= 1 && bk >= 1, "expected bn >= 1 and bk >= 1, got bn=", bn, ", bk=", bk);
  check_density(density);
  const DType dtype = kernel_dtype(scores, "scores");
  const int64_t rows = scores.size(0), columns = scores.size(1);
  STD_TORCH_CHECK(rows <= INT32_MAX && columns <= INT32_MAX, "expected sizes of at most ",
                  INT32_MAX, ", got ", rows, " and ", columns);
  Call call(scores, {});
  scores = torch::stable::contiguous(scores);
  Tensor mask = empty_like(scores, {rows, columns}, ScalarType::Bool);
  if (mask.numel() == 0) return mask;
  cuda::SelectBlockArgs args{input(scores),      output<uint8_t>(mask), dtype, rows, columns,
                             std::min(bn, rows), std::min(bk, columns), 0};
  const int64_t blocks = cuda::ceil_div(rows, args.bn) * cuda::ceil_div(columns, args.bk);
  args.keep = count_kept(density, blocks);
  if (args.keep == 0 || args.keep == blocks) {
    const cuda::RankedTensor whole{nullptr, args.mask, mask.numel()};
    cuda::fill_masks({&whole, 1, args.keep}, call.stream());
    return mask;
  }
  const int64_t bytes = cuda::select_block_workspace(args, call.limits());
  Tensor scratch = empty_like(scores, {bytes}, ScalarType::Byte);
  cuda::select_block(args, call.limits(), output(scratch), call.stream());
  return mask;
}

}  // namespace evoprune::binding_cuda

EVOPRUNE_CUDA_LIBRARY(m) {
  m.impl("select_block", TORCH_BOX(&evoprune::binding_cuda::select_block));
}
