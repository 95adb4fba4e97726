// sgd_step_: SGD with momentum, importance and mask of a list of tensors in one pass over memory.
//
//   g  = grad / scale * sign                       sign = -1 to maximize
//   g += sparse_decay * w where not mask           with sparse_decay, and then no weight is zeroed
//   d  = g + weight_decay * w
//   b  = momentum * b + (1 - dampening) * d        b = d at a tensor's first step
//   d  = b, or d + momentum * b with nesterov
//   w' = w - lr * d
//   w' = +0.0 where not mask
//   importance += alpha * (value(w or w', grad) - importance) unless lr = 0
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

struct Sgd {
  using Args = SgdStepArgs;

  template <bool kTail, typename P, typename S, typename Rule>
  static EVOPRUNE_INLINE void step_vector(const Args& a, const StepTensor& t, int64_t i,
                                          int64_t n) {
    const Vec gradient = get_gradient<kTail, P>(a.list, t, i, n);
    const Vec w = get<kTail>(static_cast<const P*>(t.param) + i, n);
    Vec d = decay_masked<kTail>(a.list, t, i, n, w, gradient);
    if (a.decays) d = fma(w, broadcast(a.weight_decay), d);
    if (t.moment != nullptr) {
      S* moment = static_cast<S*>(t.moment) + i;
      Vec b = d;
      if (!t.first_step)
        b = fma(d, broadcast(a.undampened), get<kTail>(moment, n) * broadcast(a.momentum));
      put<kTail>(moment, b, n);
      d = a.nesterov ? fma(b, broadcast(a.momentum), d) : b;
    }
    const Vec w_new = fma(d, broadcast(-a.lr), w);
    put_weight<kTail, P, Rule>(a.list, t, i, n, w, w_new, gradient);
  }

  static bool is_usual(const Args&, const StepTensor& t) { return !t.first_step; }
  static EVOPRUNE_INLINE void set_usual(Args&, StepTensor& t) { t.first_step = false; }
};

}  // namespace

void sgd_step(const SgdStepArgs& a, int64_t begin, int64_t end) {
  step_chunks<Sgd>(a, begin, end);
}

}  // namespace evoprune::EVOPRUNE_ISA
