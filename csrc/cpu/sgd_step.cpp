// sgd_step_: SGD with momentum, importance and mask of a list of tensors in one pass over memory.
//
//   g  = grad / scale * sign                       sign = -1 to maximize
//   d  = g + weight_decay * w
//   b  = momentum * b + (1 - dampening) * d        b = d at a tensor's first step
//   d  = b, or d + momentum * b with nesterov
//   w' = w - lr * d
//   w' = +0.0 where not mask;   importance += alpha * (x - importance)
//
//   memory a parameter, fp32, bytes     w  g  b  imp  mask
//     read                              4  4  4   4    1           each byte once: the pass is
//     bound written                           4     4   4                by memory, 29 bytes a
//     parameter
//
// A work unit is a chunk of one tensor (cpu/step.h); one vector of elements at a time. Math in fp32
// in the order of torch's fused SGD; the buffer of bf16 parameters is used before it is rounded. At
// the first step the buffer is written and never read.
// Source: Sutskever et al., "On the importance of initialization and momentum in deep learning",
// ICML 2013, in the form of torch.optim.SGD.
#include "cpu/step.h"

namespace evoprune::EVOPRUNE_ISA {

namespace {

template <bool kTail, typename P, typename S, typename Rule>
EVOPRUNE_INLINE void step_vector(const SgdStepArgs& a, const StepTensor& t, int64_t i, int64_t n) {
  const Vec g = get_gradient<kTail, P>(a.list, t, i, n);
  const Vec w = get<kTail>(static_cast<const P*>(t.param) + i, n);
  Vec d = g;
  if (a.decays) d = fma(w, broadcast(a.weight_decay), g);
  if (t.moment != nullptr) {
    S* moment = static_cast<S*>(t.moment) + i;
    Vec b = d;
    if (!t.first_step)
      b = fma(d, broadcast(a.undampened), get<kTail>(moment, n) * broadcast(a.momentum));
    put<kTail>(moment, b, n);
    d = a.nesterov ? fma(b, broadcast(a.momentum), d) : b;
  }
  const Vec w_new = fma(d, broadcast(-a.lr), w);
  put_weight<kTail, P, Rule>(a.list, t, i, n, w, w_new, g);
}

template <typename P, typename S, typename Rule>
EVOPRUNE_INLINE void loop(const SgdStepArgs& a, const StepTensor& t, int64_t begin, int64_t end) {
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
void span(const SgdStepArgs& args, const StepTensor& tensor, int64_t begin, int64_t end) {
  SgdStepArgs a = args;
  StepTensor t = tensor;
  const bool usual =
      !a.list.scaled && a.list.sign == 1 && a.list.average.from_state && !t.first_step;
  if (!usual) return loop<P, S, Rule>(a, t, begin, end);
  a.list.scaled = false;
  a.list.sign = 1;
  a.list.average.from_state = true;
  t.first_step = false;
  loop<P, S, Rule>(a, t, begin, end);
}

using Span = void (*)(const SgdStepArgs&, const StepTensor&, int64_t, int64_t);

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

void sgd_step(const SgdStepArgs& a, int64_t begin, int64_t end) {
  const Span span = choose(a.list);
  for_each_span(a.list, begin, end,
                [&](const StepTensor& t, int64_t first, int64_t last) { span(a, t, first, last); });
}

}  // namespace evoprune::EVOPRUNE_ISA
