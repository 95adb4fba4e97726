// adamw_step_: AdamW, importance and mask of a list of tensors in one pass over memory.
//
//   g  = grad / scale * sign                       sign = -1 to maximize
//   g += sparse_decay * w where not mask           with sparse_decay, and then no weight is zeroed
//   m  = lerp(m, g, 1 - beta1)
//   v  = beta2 * v + (1 - beta2) * g * g           u = max(u, v) with amsgrad, else v
//   w' = w * (1 - lr * weight_decay) - step_size * m / (sqrt(u) / root_correction2 + eps)
//   w' = +0.0 where not mask
//   importance += alpha * (value(w or w', grad) - importance) unless lr = 0
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

struct Adamw {
  using Args = AdamwStepArgs;

  template <bool kTail, typename P, typename S, typename Rule>
  static EVOPRUNE_INLINE void step_vector(const Args& a, const StepTensor& t, int64_t i,
                                          int64_t n) {
    const Vec gradient = get_gradient<kTail, P>(a.list, t, i, n);
    const Vec w = get<kTail>(static_cast<const P*>(t.param) + i, n);
    const Vec g = decay_masked<kTail>(a.list, t, i, n, w, gradient);

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
    put_weight<kTail, P, Rule>(a.list, t, i, n, w, w_new, gradient);
  }

  static bool is_usual(const Args& a, const StepTensor& t) {
    return a.first_moment.from_state && t.largest_square == nullptr;
  }
  static EVOPRUNE_INLINE void set_usual(Args& a, StepTensor& t) {
    a.first_moment.from_state = true;
    t.largest_square = nullptr;
  }
};

}  // namespace

void adamw_step(const AdamwStepArgs& a, int64_t begin, int64_t end) {
  step_chunks<Adamw>(a, begin, end);
}

}  // namespace evoprune::EVOPRUNE_ISA
