// evoprune::gather_channels and scatter_channels on the CPU: checks, allocation, threads. The kernel
// is in cpu/gather_channels.cpp.
#include <array>
#include <vector>

#include "ops/channel_checks.h"

namespace evoprune::binding {

// The index, checked: int64 [K] in [0, channels).
static Tensor checked_index(const Tensor& index, int64_t channels) {
  STD_TORCH_CHECK(index.dim() == 1, "expected index of 1 dimension, got ", index.dim());
  check_dtype(index, ScalarType::Long, "index");
  const Tensor dense = torch::stable::contiguous(index);
  const int64_t* entries = static_cast<const int64_t*>(dense.const_data_ptr());
  for (int64_t k = 0; k < dense.size(0); ++k)
    STD_TORCH_CHECK(0 <= entries[k] && entries[k] < channels, "expected index in [0, ", channels,
                    "), got ", entries[k]);
  return dense;
}

// x with another number of channels, in its memory format.
static Tensor with_channels(const Tensor& x, int64_t channels, MemoryFormat format) {
  std::vector<int64_t> sizes(x.sizes().begin(), x.sizes().end());
  sizes[1] = channels;
  return torch::stable::empty({sizes.data(), sizes.size()}, x.scalar_type(), std::nullopt,
                              std::nullopt, std::nullopt, format);
}

static Tensor move(const Tensor& x, const Tensor& index, int64_t channels, bool scatter,
                   const int64_t* place) {
  const MemoryFormat format = memory_format(x);
  const Tensor source = in_order(x, format);
  const int64_t kept = index.size(0);
  Tensor y = with_channels(source, scatter ? channels : kept, format);
  if (y.numel() == 0) return y;
  const int64_t inner = inner_of(x);
  const bool last = format == MemoryFormat::ChannelsLast;
  const int64_t units = last ? x.size(0) * inner : x.size(0);
  const MoveChannelsArgs args{source.const_data_ptr(),
                              y.mutable_data_ptr(),
                              static_cast<const int64_t*>(index.const_data_ptr()),
                              place,
                              channels,
                              kept,
                              last ? 1 : inner,
                              static_cast<int64_t>(x.element_size()),
                              scatter};
  run(kernels().channels.move, args, units, 1 + 32768 / (channels * args.inner + 1));
  return y;
}

Tensor gather_channels(Tensor x, Tensor index) {
  check_channels(x);
  const int64_t channels = x.size(1);
  return move(x, checked_index(index, channels), channels, false, nullptr);
}

// Where an index stands twice, its channels are added: torch does it.
static Tensor add_up(const Tensor& x, const Tensor& index, int64_t channels) {
  Tensor y = with_channels(x, channels, memory_format(x));
  y = torch::stable::zero_(y);
  std::vector<int64_t> sizes(static_cast<size_t>(x.dim()), 1);
  sizes[1] = index.size(0);
  std::array<StableIValue, 2> shape{
      torch::stable::detail::from(torch::stable::view(index, {sizes.data(), sizes.size()})),
      torch::stable::detail::from(x)};
  STABLE_TORCH_ERROR_CODE_CHECK(
      torch_call_dispatcher("aten::expand_as", "", shape.data(), TORCH_ABI_VERSION));
  std::array<StableIValue, 4> sums{torch::stable::detail::from(y), torch::stable::detail::from(1),
                                   shape[0], torch::stable::detail::from(x)};
  STABLE_TORCH_ERROR_CODE_CHECK(
      torch_call_dispatcher("aten::scatter_add_", "", sums.data(), TORCH_ABI_VERSION));
  return torch::stable::detail::to<Tensor>(sums[0]);
}

Tensor scatter_channels(Tensor x, Tensor index, int64_t channels) {
  check_channels(x);
  STD_TORCH_CHECK(channels >= 0, "expected channels >= 0, got ", channels);
  const Tensor dense = checked_index(index, channels);
  check_size(dense, 0, x.size(1), "entries of index");
  const int64_t* entries = static_cast<const int64_t*>(dense.const_data_ptr());
  std::vector<int64_t> place(static_cast<size_t>(channels), -1);
  for (int64_t k = 0; k < dense.size(0); ++k) {
    int64_t& here = place[static_cast<size_t>(entries[k])];
    if (here >= 0) return add_up(x, dense, channels);
    here = k;
  }
  return move(x, dense, channels, true, place.data());
}

}  // namespace evoprune::binding

STABLE_TORCH_LIBRARY_IMPL(evoprune, CPU, m) {
  m.impl("gather_channels", TORCH_BOX(&evoprune::binding::gather_channels));
  m.impl("scatter_channels", TORCH_BOX(&evoprune::binding::scatter_channels));
}
