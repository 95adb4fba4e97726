// adamw_step_: AdamW, importance and mask of a list of tensors in one pass over memory.
//
//   g  = grad / scale * sign                       sign = -1 to maximize
//   m  = lerp(m, g, 1 - beta1)
//   v  = beta2 * v + (1 - beta2) * g * g           u = max(u, v) with amsgrad, else v
//   w' = w * (1 - lr * weight_decay) - step_size * m / (sqrt(u) / root_correction2 + eps)
//   w' = +0.0 where not mask;   importance += alpha * (x - importance)
//
//   memory a parameter, fp32, bytes     w  g  m  v  imp  mask
//     read                              4  4  4  4   4    1        each byte once: the pass is
//     bound written                           4     4  4   4             by memory, 37 bytes a
//     parameter
//
// A work unit is a chunk of one tensor (cpu/step.h); one vector of elements at a time. Math in fp32
// in the order of torch's fused AdamW, bias corrections in double on the host, moments of bf16
// parameters are used before they are rounded. fp32 elements are bitwise those of torch's kernel at
// the same ISA level, where that one is right. NaN and infinity pass through as in torch, except
// that a masked weight is always +0.0.
// Source: Loshchilov and Hutter, "Decoupled Weight Decay Regularization", ICLR 2019.
#include "cpu/step.h"

namespace evoprune::EVOPRUNE_ISA {

namespace {

template <bool kTail, typename P, typename S, typename Rule>
EVOPRUNE_INLINE void step_vector(const AdamwStepArgs& a, const StepTensor& t, int64_t i,
                                 int64_t n) {
  const Vec g = get_gradient<kTail, P>(a.list, t, i, n);
  const Vec w = get<kTail>(static_cast<const P*>(t.param) + i, n);

  S* moment = static_cast<S*>(t.moment) + i;
  const Vec m = a.first_moment.operator()<VecMath>(get<kTail>(moment, n), g);
  put<kTail>(moment, m, n);

  S* square = static_cast<S*>(t.square) + i;
  Vec v = fma(broadcast(a.square_weight) * g, g, get<kTail>(square, n) * broadcast(a.beta2));
  put<kTail>(square, v, n);
  if (t.largest_square != nullptr) {
    S* largest = static_cast<S*>(t.largest_square) + i;
    v = max_or_nan(get<kTail>(largest, n), v);
    put<kTail>(largest, v, n);
  }

  const Vec denominator = sqrt(v) / broadcast(t.root_correction2) + broadcast(a.eps);
  const Vec w_new = w * broadcast(a.weight_factor) + broadcast(-t.step_size) * m / denominator;
  put_weight<kTail, P, Rule>(a.list, t, i, n, w, w_new, g);
}

template <typename P, typename S, typename Rule>
EVOPRUNE_INLINE void loop(const AdamwStepArgs& a, const StepTensor& t, int64_t begin, int64_t end) {
  int64_t i = begin;
  for (; i + kPrefetchEvery <= end; i += kPrefetchEvery) {
    prefetch_step<P, S>(t, i, Rule::kHasState);
    for (int64_t u = 0; u < kPrefetchEvery; u += kLanes)
      step_vector<false, P, S, Rule>(a, t, i + u, kLanes);
  }
  for (; i + kLanes <= end; i += kLanes) step_vector<false, P, S, Rule>(a, t, i, kLanes);
  if (i < end) step_vector<true, P, S, Rule>(a, t, i, end - i);
}

// Copies, which no store can change, so they stay in registers. The usual case is compiled a second
// time with its features known to be off: fewer instructions leave room for more memory requests.
template <typename P, typename S, typename Rule>
void span(const AdamwStepArgs& args, const StepTensor& tensor, int64_t begin, int64_t end) {
  AdamwStepArgs a = args;
  StepTensor t = tensor;
  const bool usual = !a.list.scaled && a.list.sign == 1 && a.list.average.from_state &&
                     a.first_moment.from_state && t.largest_square == nullptr;
  if (!usual) return loop<P, S, Rule>(a, t, begin, end);
  a.list.scaled = false;
  a.list.sign = 1;
  a.list.average.from_state = true;
  a.first_moment.from_state = true;
  t.largest_square = nullptr;
  loop<P, S, Rule>(a, t, begin, end);
}

using Span = void (*)(const AdamwStepArgs&, const StepTensor&, int64_t, int64_t);

template <typename P, typename S>
constexpr Span kByRule[] = {
    span<P, S, importance::Magnitude>,
    span<P, S, importance::Evolution>,
    span<P, S, importance::Taylor>,
};

Span choose(const StepList& list) {
  const int rule = static_cast<int>(list.rule);
  if (list.param_dtype == DType::f32) return kByRule<float, float>[rule];
  return list.state_dtype == DType::f32 ? kByRule<bf16, float>[rule] : kByRule<bf16, bf16>[rule];
}

}  // namespace

void adamw_step(const AdamwStepArgs& a, int64_t begin, int64_t end) {
  const Span span = choose(a.list);
  for_each_span(a.list, begin, end,
                [&](const StepTensor& t, int64_t first, int64_t last) { span(a, t, first, last); });
}

}  // namespace evoprune::EVOPRUNE_ISA
