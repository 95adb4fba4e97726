// evoprune::channel_gate and its backward on CUDA: checks, allocation, memory order. The kernels
// are in cuda/channel_gate.cu and cuda/channel_gate_backward.cu.
#include "cuda/channel_gate.h"

#include <limits>
#include <tuple>

#include "ops/channel_checks.h"
#include "ops_cuda/check.h"

namespace evoprune::binding_cuda {

namespace {

using binding::in_order;
using binding::memory_format;

// All but the pointers of x and gates.
cuda::ChannelGateArgs shape_of(const Tensor& x, const Tensor& gates) {
  const int64_t inner = binding::inner_of(x);
  const bool per_sample = binding::are_per_sample(gates, x);
  const int64_t batch = x.size(0), channels = x.size(1);
  const DType dtype = kernel_dtype(x, "x"), gate_dtype = kernel_dtype(gates, "gates");
  STD_TORCH_CHECK(gate_dtype == dtype || gate_dtype == DType::f32, "expected gates of dtype ",
                  torch::headeronly::toString(x.scalar_type()), " or Float, got ",
                  torch::headeronly::toString(gates.scalar_type()));
  cuda::ChannelGateArgs args{nullptr,   nullptr,  dtype, gate_dtype,
                             batch,     channels, inner, binding::is_channels_last(x),
                             per_sample};
  if (inner == 1) args.channels_last = true;  // [B, C] is both
  if (args.channels_last && !per_sample) {
    args.inner *= args.batch;
    args.batch = 1;
  }
  // the kernels count planes or rows, and places in one, in 32 bits
  constexpr int64_t kMost = std::numeric_limits<int32_t>::max() / 2;
  const int64_t periods = args.batch * (args.channels_last ? args.inner : args.channels);
  const int64_t length = args.channels_last ? args.channels : args.inner;
  STD_TORCH_CHECK(periods <= kMost && length <= kMost, "expected x of at most ", kMost,
                  args.channels_last ? " rows and channels, got " : " planes and positions, got ",
                  periods, " and ", length);
  return args;
}

}  // namespace

Tensor channel_gate(Tensor x, Tensor gates) {
  cuda::ChannelGateArgs args = shape_of(x, gates);
  Call call(x, {&gates});
  x = in_order(x, memory_format(x));
  gates = torch::stable::contiguous(gates);
  Tensor y = torch::stable::empty_like(x);
  if (x.numel() == 0) return y;
  args.x = input(x);
  args.gates = input(gates);
  cuda::channel_gate(args, output(y), call.stream());
  return y;
}

std::tuple<Tensor, Tensor> channel_gate_backward(Tensor grad, Tensor x, Tensor gates) {
  cuda::ChannelGateBackwardArgs args{shape_of(x, gates), nullptr, nullptr, nullptr};
  binding::check_like(grad, x);
  Call call(x, {&grad, &gates});
  grad = in_order(grad, memory_format(x));
  x = in_order(x, memory_format(x));
  gates = torch::stable::contiguous(gates);
  Tensor dx = torch::stable::empty_like(x);
  if (x.numel() == 0) return {dx, torch::stable::new_zeros(gates, gates.sizes())};
  Tensor dgates = torch::stable::empty_like(gates);
  args.forward.x = input(x);
  args.forward.gates = input(gates);
  args.grad = input(grad);
  args.dx = output(dx);
  args.dgates = output(dgates);
  const int64_t floats = cuda::channel_gate_workspace(args, call.limits());
  Tensor workspace = empty_like(x, {floats}, ScalarType::Float);
  cuda::channel_gate_backward(args, call.limits(), output<float>(workspace), call.stream());
  return {dx, dgates};
}

}  // namespace evoprune::binding_cuda

EVOPRUNE_CUDA_LIBRARY(m) {
  m.impl("channel_gate", TORCH_BOX(&evoprune::binding_cuda::channel_gate));
  m.impl("channel_gate_backward", TORCH_BOX(&evoprune::binding_cuda::channel_gate_backward));
}
