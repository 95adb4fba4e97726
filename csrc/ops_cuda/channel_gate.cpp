// evoprune::channel_gate and its backward on CUDA: checks, allocation, memory order. The kernels
// are in cuda/channel_gate.cu and cuda/channel_gate_backward.cu.
#include "cuda/channel_gate.h"

#include <limits>
#include <tuple>

#include "ops_cuda/check.h"

namespace evoprune::binding_cuda {

namespace {

using torch::headeronly::MemoryFormat;

bool is_channels_last(const Tensor& x) {
  if (x.dim() != 4 || x.is_contiguous()) return false;
  int64_t expected = 1;
  for (const int dim : {1, 3, 2, 0}) {
    if (x.size(dim) != 1 && x.stride(dim) != expected) return false;
    expected *= x.size(dim);
  }
  return true;
}

Tensor in_order(const Tensor& x, bool channels_last) {
  return torch::stable::contiguous(
      x, channels_last ? MemoryFormat::ChannelsLast : MemoryFormat::Contiguous);
}

// All but the pointers of x and gates.
cuda::ChannelGateArgs shape_of(const Tensor& x, const Tensor& gates) {
  STD_TORCH_CHECK(x.dim() >= 2, "expected x of 2 dimensions or more, got ", x.dim());
  STD_TORCH_CHECK(gates.dim() == 1 || gates.dim() == 2, "expected gates of 1 or 2 dimensions, got ",
                  gates.dim());
  const bool per_sample = gates.dim() == 2;
  const int64_t batch = x.size(0), channels = x.size(1);
  if (per_sample) check_size(gates, 0, batch, "gates.size(0)");
  check_size(gates, per_sample, channels, "gates.size(-1)");
  int64_t inner = 1;
  for (int64_t dim = 2; dim < x.dim(); ++dim) inner *= x.size(dim);
  const DType dtype = kernel_dtype(x, "x"), gate_dtype = kernel_dtype(gates, "gates");
  STD_TORCH_CHECK(gate_dtype == dtype || gate_dtype == DType::f32, "expected gates of dtype ",
                  torch::headeronly::toString(x.scalar_type()), " or Float, got ",
                  torch::headeronly::toString(gates.scalar_type()));
  cuda::ChannelGateArgs args{
      nullptr, nullptr, dtype, gate_dtype, batch, channels, inner, is_channels_last(x), per_sample};
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
  x = in_order(x, is_channels_last(x));
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
  STD_TORCH_CHECK(grad.scalar_type() == x.scalar_type(), "grad has dtype ",
                  torch::headeronly::toString(grad.scalar_type()), ", expected ",
                  torch::headeronly::toString(x.scalar_type()));
  STD_TORCH_CHECK(grad.dim() == x.dim(), "expected grad of ", x.dim(), " dimensions, got ",
                  grad.dim());
  for (int64_t dim = 0; dim < x.dim(); ++dim) check_size(grad, dim, x.size(dim), "grad.size(dim)");
  Call call(x, {&grad, &gates});
  const bool channels_last = is_channels_last(x);
  x = in_order(x, channels_last);
  grad = in_order(grad, channels_last);
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
