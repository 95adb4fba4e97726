// evoprune::topk_channels and topk_abs_channels on the CPU: checks, allocation, threads. The kernels
// are in cpu/topk_channels.cpp.
#include <limits>

#include "ops/channels.h"

namespace evoprune::binding {

namespace {

Tensor topk(const Tensor& scores, int64_t k) {  // of contiguous floats
  const int64_t channels = scores.size(scores.dim() - 1);
  const int64_t rows = scores.dim() == 2 ? scores.size(0) : 1;
  const int64_t sizes[] = {rows, k};
  Tensor index = torch::stable::new_empty(
      scores,
      scores.dim() == 2 ? torch::headeronly::IntHeaderOnlyArrayRef(sizes, 2)
                        : torch::headeronly::IntHeaderOnlyArrayRef(sizes + 1, 1),
      ScalarType::Long);
  run(kernels().channels.topk,
      TopkChannelsArgs{data<float>(scores), channels, k, data<int64_t>(index)}, rows,
      std::max<int64_t>(1, 32768 / std::max<int64_t>(1, channels)));
  return index;
}

void check_k(int64_t k, int64_t channels) {
  STD_TORCH_CHECK(0 <= k && k <= channels, "expected 0 <= k <= ", channels, ", got k=", k);
}

}  // namespace

Tensor topk_channels(Tensor scores, int64_t k) {
  STD_TORCH_CHECK(scores.dim() == 1 || scores.dim() == 2,
                  "expected scores of 1 or 2 dimensions, got ", scores.dim());
  check_k(k, scores.size(scores.dim() - 1));
  return topk(widened(scores, ScalarType::Float), k);
}

Tensor topk_abs_channels(Tensor x, int64_t k) {
  const ChannelLayout layout = channel_layout(x, nullptr);
  check_k(k, layout.channels);
  x = in_order(x, memory_format(x));
  const bool empty = x.numel() == 0;
  Tensor parts = new_wide(x, {empty ? 0 : layout.parts(), layout.channels});
  if (!empty)
    run_channels(kernels().channels.sizes,
                 ChannelSizesArgs{layout, x.const_data_ptr(), parts.mutable_data_ptr()});
  const int64_t channels[] = {layout.channels};
  Tensor sums = empty ? new_wide(x, {layout.channels}, /*zeros=*/true)
                      : sum_parts(x, layout, parts, {channels, 1});
  sums = narrowed(sums, ScalarType::Float);
  float* scores = data<float>(sums);
  for (int64_t c = 0; c < layout.channels; ++c)  // NaN is not hidden
    if (scores[c] != scores[c]) scores[c] = std::numeric_limits<float>::infinity();
  return topk(sums, k);
}

}  // namespace evoprune::binding

STABLE_TORCH_LIBRARY_IMPL(evoprune, CPU, m) {
  m.impl("topk_channels", TORCH_BOX(&evoprune::binding::topk_channels));
  m.impl("topk_abs_channels", TORCH_BOX(&evoprune::binding::topk_abs_channels));
}
