// What the optimizer-step kernels share: the walk over lists of tensors, and the pass over memory.
//
//   step = step + 1;  rate = lr corrected for the step, ...      launch 1, a thread a tensor
//   everything else of the step, mask and importance included    the launches after it
//
//   tensors    | 0                   | 1       | 2             |  up to 400 a launch (kStepTensors)
//   chunks     | 0    | 1    | 2   | | 3     | | 4    | 5    |    4096 elements each (kStepChunk)
//   blocks       0      1      2       3         4      5
//
//   one chunk  | warp 0           | warp 1 | .. | warp 7 | warp 0 | ..
//     lane     | 0      | 1      | 2      | ..                       4 elements a lane and turn:
//     fp32       16 B     16 B     16 B        16-byte loads and stores
//     bf16        8 B      8 B      8 B        8 bytes, since wider ones would halve the sectors of
//     mask        4 B      4 B      4 B        the fp32 arrays beside them
//
// A block finds its tensor by bisection over the chunks before each tensor. All loads of a lane
// come before its stores. Elements after the last whole vector, and tensors that lie at other than
// multiples of four elements, go one element a lane: the same instructions, so the same bits.
//
// Bound by memory: each byte is read once and written once (37 bytes a parameter for AdamW in fp32
// with importance and mask). A thread of fp32 has 84 bytes of loads in flight, a multiprocessor
// with its 4 blocks 84 KiB, more than the latency of memory asks for. The counters are increased in
// launch 1 alone, so no block can see one half done, and nothing waits for the host: the table of
// pointers is a kernel argument, what lies on the device (step, lr, grad_scale, found_inf) is read
// there. All launches can be captured in a graph.
//
// Numbers: float, in the order of cpu/step.h and with its fused multiply-adds, none by contraction:
// the bits are those of the CPU kernel. Rounding to bf16 is to nearest even, or random with a seed
// (core/philox.h). Deterministic.
#pragma once

#include "cuda/launch.cuh"
#include "cuda/step_cells.cuh"
#include "importance/evolution.h"
#include "importance/movement.h"
#include "importance/taylor.h"

namespace evoprune::cuda {

inline constexpr int kStepThreads = 256;
// Blocks that a multiprocessor holds at the least, so registers a thread: 64, or 80 where two
// moments are rounded.
template <typename Optimizer, typename S>
inline constexpr int kStepBlocks = Optimizer::kSquares && sizeof(S) == 2 ? 3 : 4;
inline constexpr int kStepVector = 4;
inline constexpr int64_t kStepChunk = 4096;  // a multiple of what a block does in one turn
static_assert(kStepChunk % (kStepThreads * kStepVector) == 0, "no ragged turn inside a tensor");

// Kernel arguments of up to 32,764 bytes: sm_70 or newer, CUDA 12.1 or newer.
static_assert(CUDART_VERSION >= 12010, "kernel arguments of more than 4 KiB need CUDA 12.1");
inline constexpr size_t kArgumentBytes = 32764;
inline constexpr int kStepTensors = 400;  // of a launch
inline constexpr int kStepCounts = 2000;  // of a launch of step_factors_kernel
template <typename Args>
struct StepLaunch {
  Args args;
  int32_t count;
  StepTensor tensors[kStepTensors];
};
struct StepCount {
  float* step;  // null: `value` is the number of the step
  float value;
  uint32_t index;
};
template <typename Args>
struct StepCounts {
  Args args;
  int32_t count;
  StepCount at[kStepCounts];
};

__device__ __forceinline__ double read(const StepNumber& number) {
  if (number.device == nullptr) return number.value;
  if (number.is_double) return *static_cast<const double*>(number.device);
  return *static_cast<const float*>(number.device);
}

template <typename Optimizer>
__global__ void __launch_bounds__(kStepThreads)
    step_factors_kernel(const __grid_constant__ StepCounts<typename Optimizer::Args> launch) {
  const int i = static_cast<int>(blockIdx.x) * kStepThreads + static_cast<int>(threadIdx.x);
  if (i >= launch.count) return;
  const StepShared& shared = launch.args.shared;
  const StepCount& count = launch.at[i];
  if (read(shared.found_inf) != 0) {  // NaN is no zero
    shared.factors[count.index] = {.step = kSkipped};
    return;
  }
  float step = count.value;
  if (count.step != nullptr) *count.step = step = *count.step + 1.0f;
  const double lr = read(shared.lr);
  const bool averages = shared.rule != StepRule::none && lr != 0;
  StepFactors factors = Optimizer::factors(launch.args, lr, step);
  factors.grad_scale = static_cast<float>(read(shared.grad_scale));
  factors.step = static_cast<uint32_t>(step);
  factors.averages = averages;
  shared.factors[count.index] = factors;
}

__device__ __forceinline__ float importance_value(StepRule rule, float w, float gradient) {
  switch (rule) {
    case StepRule::evolution:
      return importance::Evolution::value<FloatMath>(w, gradient);
    case StepRule::evolution_abs:
      return importance::EvolutionAbs::value<FloatMath>(w, gradient);
    case StepRule::taylor:
      return importance::Taylor::value<FloatMath>(w, gradient);
    default:
      return importance::Movement::value<FloatMath>(w, gradient);
  }
}

// importance += alpha * (value(w, g) - importance)
template <int kCount>
__device__ __forceinline__ void advance(StepCells<kCount>& cells, const float (&w)[kCount],
                                        const StepShared& shared, StepRule rule) {
#pragma unroll
  for (int k = 0; k < kCount; ++k) {
    const float value = importance_value(rule, w[k], cells.g[k]);
    cells.average[k] = shared.average.template operator()<FloatMath>(cells.average[k], value);
  }
}

// Elements i ... i + kCount of tensor t. The usual step is compiled once more with its rule, its
// point and no decay known, which saves a sixth of the instructions.
template <typename Optimizer, typename P, typename S, bool kUsual, int kCount>
__device__ __forceinline__ void step_elements(const typename Optimizer::Args& args,
                                              const StepTensor& t, const StepFactors& factors,
                                              int64_t i) {
  const StepShared& shared = args.shared;
  const bool masked = t.mask != nullptr, averages = factors.averages != 0;
  const bool decays = !kUsual && shared.decays_masked;
  const StepPoint point = kUsual ? StepPoint::stored : shared.point;
  StepCells<kCount> c;
  load<P>(c.g, t.grad, i);
  load<P>(c.w, t.param, i);
  if (t.moment != nullptr && Optimizer::reads_moment(factors)) load<S>(c.moment, t.moment, i);
  if constexpr (Optimizer::kSquares) {
    load<S>(c.square, t.square, i);
    if (t.largest_square != nullptr) load<S>(c.largest, t.largest_square, i);
  }
  if (averages) load<float>(c.average, t.importance, i);
  if (masked) c.kept = load_vector<uint8_t, kCount>(t.mask, i);
  const bool seeded = shared.seeded && sizeof(P) == 2;
  if (seeded) draw(c, i, t.index, factors.step, shared.seed);

  if (shared.scaled) {
#pragma unroll
    for (int k = 0; k < kCount; ++k) c.g[k] /= factors.grad_scale;
    float written[kCount];
#pragma unroll
    for (int k = 0; k < kCount; ++k) written[k] = c.g[k];
    store<P, 0, 0>(t.grad, i, written, c, false);
  }
  float w_seen[kCount];  // by the importance
#pragma unroll
  for (int k = 0; k < kCount; ++k) {
    c.g[k] *= shared.sign;
    const bool pruned = masked && !c.kept.at[k];
    w_seen[k] = c.w[k];
    const float g = pruned && decays ? fmaf(c.w[k], shared.sparse_decay, c.g[k]) : c.g[k];
    const float w_new = Optimizer::step(args, t, factors, c, k, g);
    c.w[k] = to_float(rounded<P>(w_new, c.random[k][0] & 0xFFFFu, seeded));
    if (point == StepPoint::updated) w_seen[k] = c.w[k];
    if (pruned && !decays) c.w[k] = 0.0f;
    if (point == StepPoint::stored) w_seen[k] = c.w[k];
  }
  if (t.moment != nullptr) store<S, 0, 1>(t.moment, i, c.moment, c, seeded);
  if constexpr (Optimizer::kSquares) {
    store<S, 1, 0>(t.square, i, c.square, c, seeded);
    if (t.largest_square != nullptr) store<S, 1, 1>(t.largest_square, i, c.largest, c, seeded);
  }
  store<P, 0, 0>(t.param, i, c.w, c, false);  // rounded already
  if (averages) {
    advance(c, w_seen, shared, kUsual ? StepRule::evolution : shared.rule);
    store<float, 0, 0>(t.importance, i, c.average, c, false);
  }
}

// Elements first ... last of tensor t, by all threads of the block.
template <typename Optimizer, typename P, typename S, bool kUsual>
__device__ __forceinline__ void step_span(const typename Optimizer::Args& args, const StepTensor& t,
                                          const StepFactors& factors, int64_t first, int64_t last) {
  const int64_t whole = t.vectors ? last / kStepVector * kStepVector : first;
  const int thread = static_cast<int>(threadIdx.x);
  for (int64_t i = first + thread * kStepVector; i < whole; i += kStepThreads * kStepVector)
    step_elements<Optimizer, P, S, kUsual, kStepVector>(args, t, factors, i);
  for (int64_t i = whole + thread; i < last; i += kStepThreads)
    step_elements<Optimizer, P, S, kUsual, 1>(args, t, factors, i);
}

// Whether the usual kernel does what is asked for.
inline bool is_usual(const StepShared& shared) {
  const bool evolution = shared.rule == StepRule::evolution && shared.point == StepPoint::stored;
  return !shared.decays_masked && (shared.rule == StepRule::none || evolution);
}

// The chunk of this block.
template <typename Optimizer, typename P, typename S, bool kUsual>
__device__ __forceinline__ void step_chunk(const StepLaunch<typename Optimizer::Args>& launch) {
  const uint32_t chunk = blockIdx.x;
  int low = 0, high = launch.count - 1;  // the last tensor whose first chunk is <= chunk
  while (low < high) {
    const int middle = (low + high + 1) / 2;
    if (launch.tensors[middle].first_chunk <= chunk)
      low = middle;
    else
      high = middle - 1;
  }
  const StepTensor& t = launch.tensors[low];
  const StepFactors factors = launch.args.shared.factors[t.index];
  if (factors.step == kSkipped) return;
  const int64_t first = (chunk - t.first_chunk) * kStepChunk;
  const int64_t last = first + kStepChunk < t.numel ? first + kStepChunk : t.numel;
  step_span<Optimizer, P, S, kUsual>(launch.args, t, factors, first, last);
}

}  // namespace evoprune::cuda
