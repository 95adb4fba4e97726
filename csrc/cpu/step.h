// What the optimizer-step kernels share: the walk over a list of tensors, vector input and output
// with tails, and the last part of every step (mask, rounding, importance). An `Optimizer` adds what
// it does with one vector (`step_vector`), and which of its own features most steps do without
// (`is_usual`, `set_usual`).
//
//   tensors    | 0                  | 1      | 2                    |    one list, any sizes
//   chunks     | 0    | 1    | 2  | | 3    | | 4    | 5    | 6    | |    kStepChunk elements each,
//   threads    |  thread 0           |  thread 1                    |    the last of a tensor
//   shorter
//
// A work unit is a chunk. Every element is computed on its own, by the same instructions in a tail
// as elsewhere, so neither threads nor chunks can change a result.
#pragma once

#include "cpu/kernels.h"
#include "cpu/simd.h"
#include "importance/evolution.h"
#include "importance/magnitude.h"
#include "importance/movement.h"
#include "importance/taylor.h"

namespace evoprune::EVOPRUNE_ISA {

struct VecMath {
  static EVOPRUNE_INLINE Vec fma(Vec a, Vec b, Vec c) { return EVOPRUNE_ISA::fma(a, b, c); }
  static EVOPRUNE_INLINE Vec mul(Vec a, Vec b) { return a * b; }
  static EVOPRUNE_INLINE Vec abs(Vec a) { return EVOPRUNE_ISA::abs(a); }
  static EVOPRUNE_INLINE Vec all(float x) { return broadcast(x); }
};

// Calls span(tensor, first, last) for the elements of chunks [begin, end).
template <typename Span>
EVOPRUNE_INLINE void for_each_span(const StepList& list, int64_t begin, int64_t end,
                                   const Span& span) {
  int64_t low = 0, high = list.count - 1;  // the last tensor whose first chunk is <= begin
  while (low < high) {
    const int64_t middle = (low + high + 1) / 2;
    if (list.tensors[middle].first_chunk <= begin)
      low = middle;
    else
      high = middle - 1;
  }
  for (int64_t i = low; i < list.count && list.tensors[i].first_chunk < end; ++i) {
    const StepTensor& t = list.tensors[i];
    const int64_t first = (begin > t.first_chunk ? begin - t.first_chunk : 0) * kStepChunk;
    const int64_t last = (end - t.first_chunk) * kStepChunk;
    span(t, first, last < t.numel ? last : t.numel);
  }
}

// A whole vector, or the first n lanes of one.
template <bool kTail, typename T>
EVOPRUNE_INLINE Vec get(const T* p, int64_t n) {
  if constexpr (kTail) return load_first(p, n);
  return load(p);
}
template <bool kTail, typename T>
EVOPRUNE_INLINE void put(T* p, Vec v, int64_t n) {
  if constexpr (kTail) return store_first(p, v, n);
  store(p, v);
}
template <bool kTail>
EVOPRUNE_INLINE IVec get_mask(const uint8_t* p, int64_t n) {
  if constexpr (!kTail) return load_mask(p);
  uint8_t bytes[kLanes] = {};
  std::memcpy(bytes, p, static_cast<size_t>(n));
  return load_mask(bytes);
}

// Elements between two prefetches: a cache line of fp32. Software prefetch pays here because the
// hardware follows fewer streams than a step has (up to nine), and stops at every page.
inline constexpr int64_t kPrefetchEvery = 16;
inline constexpr int64_t kPrefetchAhead = 128;  // elements; measured: 64 ... 192 are alike

template <typename P, typename S>
EVOPRUNE_INLINE void prefetch_step(const StepTensor& t, int64_t i, bool importance) {
  i += kPrefetchAhead;
  prefetch(static_cast<const P*>(t.grad) + i);
  prefetch(static_cast<const P*>(t.param) + i);
  if (t.moment != nullptr) prefetch(static_cast<const S*>(t.moment) + i);
  if (t.square != nullptr) prefetch(static_cast<const S*>(t.square) + i);
  if (importance) prefetch(t.importance + i);
  if (t.mask != nullptr) prefetch(t.mask + i);
}

// The value that memory will hold after `v` was stored as a T.
template <typename T>
EVOPRUNE_INLINE Vec as_stored(Vec v) {
  if constexpr (sizeof(T) == 2) return (Vec)(round_to_bf16(v) << 16);
  return v;
}

// The gradient of elements i ... i + n: unscaled (also in memory), negated to maximize.
template <bool kTail, typename P>
EVOPRUNE_INLINE Vec get_gradient(const StepList& list, const StepTensor& t, int64_t i, int64_t n) {
  P* grad = static_cast<P*>(t.grad) + i;
  Vec g = get<kTail>(grad, n);
  if (list.scaled) {
    g = g / broadcast(list.grad_scale);
    put<kTail>(grad, g, n);
  }
  return g * broadcast(list.sign);
}

// What the moments see of a gradient: with sparse_decay, masked weights decay towards zero.
template <bool kTail>
EVOPRUNE_INLINE Vec decay_masked(const StepList& list, const StepTensor& t, int64_t i, int64_t n,
                                 Vec w_old, Vec gradient) {
  if (!list.decays_masked) return gradient;
  const IVec mask = get_mask<kTail>(t.mask + i, n);
  return mask ? gradient : fma(w_old, broadcast(list.sparse_decay), gradient);
}

// Stores the new weight under the mask and advances the importance.
template <bool kTail, typename P, typename Rule>
EVOPRUNE_INLINE void put_weight(const StepList& list, const StepTensor& t, int64_t i, int64_t n,
                                Vec w_old, Vec w_new, Vec gradient) {
  Vec kept = w_new;
  if (t.mask != nullptr && !list.decays_masked)
    kept = keep_where(get_mask<kTail>(t.mask + i, n), w_new);
  put<kTail>(static_cast<P*>(t.param) + i, kept, n);
  if constexpr (Rule::kHasState) {
    float* state = t.importance + i;
    Vec w = w_old;
    if (list.point != StepPoint::before)
      w = as_stored<P>(list.point == StepPoint::updated ? w_new : kept);
    const Vec value = Rule::template value<VecMath>(w, gradient);
    put<kTail>(state, list.average.template operator()<VecMath>(get<kTail>(state, n), value), n);
  }
}

// Elements begin ... end of one tensor, a cache line of them at a time.
template <typename Optimizer, typename P, typename S, typename Rule>
EVOPRUNE_INLINE void step_loop(const typename Optimizer::Args& a, const StepTensor& t,
                               int64_t begin, int64_t end) {
  int64_t i = begin;
  for (; i + kPrefetchEvery <= end; i += kPrefetchEvery) {
    prefetch_step<P, S>(t, i, Rule::kHasState);
    for (int64_t u = 0; u < kPrefetchEvery; u += kLanes)
      Optimizer::template step_vector<false, P, S, Rule>(a, t, i + u, kLanes);
  }
  for (; i + kLanes <= end; i += kLanes)
    Optimizer::template step_vector<false, P, S, Rule>(a, t, i, kLanes);
  if (i < end) Optimizer::template step_vector<true, P, S, Rule>(a, t, i, end - i);
}

// The same. Copies, which no store can change, so they stay in registers. The usual case is compiled
// once more for each point of the rule, with its features known to be off: fewer instructions leave
// room for more memory requests.
template <typename Optimizer, typename P, typename S, typename Rule>
void step_span(const typename Optimizer::Args& args, const StepTensor& tensor, int64_t begin,
               int64_t end) {
  typename Optimizer::Args a = args;
  StepTensor t = tensor;
  StepList& list = a.list;
  const bool usual = !list.scaled && list.sign == 1 && list.average.from_state &&
                     !list.decays_masked && Optimizer::is_usual(a, t);
  if (!usual) return step_loop<Optimizer, P, S, Rule>(a, t, begin, end);
  list.scaled = false;
  list.sign = 1;
  list.average.from_state = true;
  list.decays_masked = false;
  Optimizer::set_usual(a, t);
  const bool before = Rule::kHasState && list.point == StepPoint::before;
  list.point = Rule::kPost;
  if (!before) return step_loop<Optimizer, P, S, Rule>(a, t, begin, end);
  list.point = StepPoint::before;
  step_loop<Optimizer, P, S, Rule>(a, t, begin, end);
}

template <typename Args>
using Span = void (*)(const Args&, const StepTensor&, int64_t, int64_t);

template <typename Optimizer, typename P, typename S>
inline constexpr Span<typename Optimizer::Args> kByRule[] = {
    // in the order of StepRule
    step_span<Optimizer, P, S, importance::Magnitude>,
    step_span<Optimizer, P, S, importance::Evolution>,
    step_span<Optimizer, P, S, importance::EvolutionAbs>,
    step_span<Optimizer, P, S, importance::Taylor>,
    step_span<Optimizer, P, S, importance::Movement>,
};

// Chunks begin ... end of the list.
template <typename Optimizer>
void step_chunks(const typename Optimizer::Args& a, int64_t begin, int64_t end) {
  const StepList& list = a.list;
  const int rule = static_cast<int>(list.rule);
  const auto span = list.param_dtype == DType::f32   ? kByRule<Optimizer, float, float>[rule]
                    : list.state_dtype == DType::f32 ? kByRule<Optimizer, bf16, float>[rule]
                                                     : kByRule<Optimizer, bf16, bf16>[rule];
  for_each_span(list, begin, end,
                [&](const StepTensor& t, int64_t first, int64_t last) { span(a, t, first, last); });
}

}  // namespace evoprune::EVOPRUNE_ISA
