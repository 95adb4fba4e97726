// evoprune::channel_gate and its backward on the CPU: checks, allocation, memory order, threads. The
// kernels are in cpu/channel_gate.cpp.
#include <tuple>
#include <vector>

#include "ops/channels.h"

namespace evoprune::binding {

Tensor sum_parts(const Tensor& x, const ChannelLayout& l, const Tensor& parts,
                 torch::headeronly::IntHeaderOnlyArrayRef sizes) {
  Tensor sums = torch::stable::new_empty(x, sizes, wide_type(x));
  with_wide(wide_type(x), [&]<typename T>() {
    std::vector<double> totals(static_cast<size_t>(l.groups() * l.channels), 0.0);
    const T* of_parts = data<T>(parts);
    for (int64_t part = 0; part < l.parts(); ++part) {
      double* total = totals.data() + l.group_of(part) * l.channels;
      for (int64_t c = 0; c < l.channels; ++c) total[c] += of_parts[part * l.channels + c];
    }
    for (size_t i = 0; i < totals.size(); ++i) data<T>(sums)[i] = static_cast<T>(totals[i]);
  });
  return sums;
}

namespace {

void check_gates(const Tensor& x, const Tensor& gates) {
  STD_TORCH_CHECK(
      gates.scalar_type() == x.scalar_type() || gates.scalar_type() == ScalarType::Float,
      "expected gates of dtype ", torch::headeronly::toString(x.scalar_type()), " or Float, got ",
      torch::headeronly::toString(gates.scalar_type()));
}

}  // namespace

Tensor channel_gate(Tensor x, Tensor gates) {
  const ChannelLayout layout = channel_layout(x, &gates);
  check_gates(x, gates);
  x = in_order(x, memory_format(x));
  gates = widened(gates, wide_type(x));
  Tensor y = torch::stable::empty_like(x);
  if (x.numel() == 0) return y;
  run_channels(
      kernels().channels.gate,
      ChannelGateArgs{layout, x.const_data_ptr(), gates.const_data_ptr(), y.mutable_data_ptr()});
  return y;
}

std::tuple<Tensor, Tensor> channel_gate_backward(Tensor grad, Tensor x, Tensor gates) {
  const ChannelLayout layout = channel_layout(x, &gates);
  check_gates(x, gates);
  check_like(grad, x);
  const ScalarType gates_type = gates.scalar_type();
  grad = in_order(grad, memory_format(x));
  x = in_order(x, memory_format(x));
  Tensor dx = torch::stable::empty_like(x);
  if (x.numel() == 0) return {dx, torch::stable::new_zeros(gates, gates.sizes())};
  gates = widened(gates, wide_type(x));
  Tensor parts = new_wide(x, {layout.parts(), layout.channels});
  run_channels(kernels().channels.gate_backward,
               ChannelGateBackwardArgs{layout, grad.const_data_ptr(), x.const_data_ptr(),
                                       gates.const_data_ptr(), dx.mutable_data_ptr(),
                                       parts.mutable_data_ptr()});
  return {dx, narrowed(sum_parts(x, layout, parts, gates.sizes()), gates_type)};
}

}  // namespace evoprune::binding

STABLE_TORCH_LIBRARY_IMPL(evoprune, CPU, m) {
  m.impl("channel_gate", TORCH_BOX(&evoprune::binding::channel_gate));
  m.impl("channel_gate_backward", TORCH_BOX(&evoprune::binding::channel_gate_backward));
}
