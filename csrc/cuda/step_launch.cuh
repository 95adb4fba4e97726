// The launches of an optimizer step: one that advances the counters, then one for every
// kStepTensors tensors of the same dtypes.
#pragma once

#include "cuda/step.cuh"

namespace evoprune::cuda {

template <typename Args>
using StepKernel = void (*)(StepLaunch<Args>);

template <typename Optimizer>
void launch_factors(const typename Optimizer::Args& args, const StepItem* items, int64_t count,
                    cudaStream_t stream) {
  StepCounts<typename Optimizer::Args> counts;
  static_assert(sizeof(counts) <= kArgumentBytes, "the arguments of a kernel have a limit");
  counts.args = args;
  for (int64_t begin = 0; begin < count; begin += kStepCounts) {
    const int64_t left = count - begin;
    counts.count = static_cast<int32_t>(left < kStepCounts ? left : kStepCounts);
    for (int i = 0; i < counts.count; ++i) {
      const StepItem& item = items[begin + i];
      counts.at[i] = {item.step, item.step_value, item.tensor.index};
    }
    const dim3 grid(static_cast<unsigned>(ceil_div(counts.count, kStepThreads)));
    launch(step_factors_kernel<Optimizer>, grid, kStepThreads, 0, stream, counts);
  }
}

// Of the tensors with these dtypes; empty ones have nothing to do.
template <typename Args>
void launch_pass(StepKernel<Args> kernel, const Args& args, const StepItem* items, int64_t count,
                 DType param, DType state, cudaStream_t stream) {
  StepLaunch<Args> table;
  static_assert(sizeof(table) <= kArgumentBytes, "the arguments of a kernel have a limit");
  constexpr int64_t kMaxChunks = 0x7FFFFFFF;  // blocks of a grid
  table.args = args;
  table.count = 0;
  int64_t chunks = 0;
  const auto flush = [&] {
    if (table.count > 0)
      launch(kernel, dim3(static_cast<unsigned>(chunks)), kStepThreads, 0, stream, table);
    table.count = 0;
    chunks = 0;
  };
  for (int64_t i = 0; i < count; ++i) {
    const StepItem& item = items[i];
    if (item.param_dtype != param || item.state_dtype != state || item.tensor.numel == 0) continue;
    const int64_t more = ceil_div(item.tensor.numel, kStepChunk);
    if (table.count == kStepTensors || chunks + more > kMaxChunks) flush();
    table.tensors[table.count] = item.tensor;
    table.tensors[table.count].first_chunk = static_cast<uint32_t>(chunks);
    ++table.count;
    chunks += more;
  }
  flush();
}

// kernels: of fp32, of bf16 with a state of fp32, of bf16
template <typename Optimizer, typename Args = typename Optimizer::Args>
void launch_steps(StepKernel<Args> const (&kernels)[3], const Args& args, const StepItem* items,
                  int64_t count, cudaStream_t stream) {
  if (count == 0) return;
  launch_factors<Optimizer>(args, items, count, stream);
  launch_pass(kernels[0], args, items, count, DType::f32, DType::f32, stream);
  launch_pass(kernels[1], args, items, count, DType::bf16, DType::f32, stream);
  launch_pass(kernels[2], args, items, count, DType::bf16, DType::bf16, stream);
}

}  // namespace evoprune::cuda
