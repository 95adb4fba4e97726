// evoprune::select_topk and select_topk_global on CUDA: checks and allocation. The kernels are in
// cuda/radix_select.cuh.
#include "cuda/select_topk.h"

#include <vector>

#include "ops_cuda/ranked.h"

namespace evoprune::binding_cuda {

namespace {

using TensorList = std::vector<Tensor>;

// One mask for each of `scores`: the highest round(density * entries of all).
TensorList select_highest(TensorList scores, double density) {
  check_density(density);
  TensorList masks;
  if (scores.empty()) return masks;
  bool one_dtype = true;
  for (const Tensor& s : scores) {
    kernel_dtype(s, "scores");
    one_dtype &= s.scalar_type() == scores[0].scalar_type();
  }
  Call call(scores[0], {});
  int64_t entries = 0;
  for (Tensor& s : scores) {
    STD_TORCH_CHECK(s.get_device() == scores[0].get_device(), "expected all tensors on device ",
                    scores[0].get_device(), ", got one on device ", s.get_device());
    s = torch::stable::contiguous(one_dtype ? s : torch::stable::to(s, ScalarType::Float));
    masks.push_back(torch::stable::new_empty(s, s.sizes(), ScalarType::Bool));
    entries += s.numel();
  }
  const int64_t keep = count_kept(density, entries);
  std::vector<cuda::RankedTensor> tensors;
  for (size_t i = 0; i < scores.size(); ++i)
    tensors.push_back({input(scores[i]), output<uint8_t>(masks[i]), scores[i].numel()});
  const cuda::SelectTopkArgs args{{tensors.data(), static_cast<int64_t>(tensors.size()), keep},
                                  kernel_dtype(scores[0], "scores")};
  if (keep == 0 || keep == entries) {
    cuda::fill_masks(args.list, call.stream());
    return masks;
  }
  const cuda::RadixPlan plan = cuda::select_topk_plan(args, call.limits());
  Tensor scratch = empty_like(scores[0], {plan.bytes}, ScalarType::Byte);
  cuda::select_topk(args, plan, output(scratch), call.stream());
  return masks;
}

}  // namespace

Tensor select_topk(Tensor scores, double density) {
  return select_highest({scores}, density)[0];
}

std::vector<Tensor> select_topk_global(std::vector<Tensor> scores, double density) {
  return select_highest(scores, density);
}

}  // namespace evoprune::binding_cuda

EVOPRUNE_CUDA_LIBRARY(m) {
  m.impl("select_topk", TORCH_BOX(&evoprune::binding_cuda::select_topk));
  m.impl("select_topk_global", TORCH_BOX(&evoprune::binding_cuda::select_topk_global));
}
