// adamw_step_: AdamW, importance and mask of a list of tensors in one pass over memory.
//
//   g  = grad / scale * sign                       sign = -1 to maximize
//   g += sparse_decay * w where not mask           with sparse_decay, and then no weight is zeroed
//   m  = lerp(m, g, 1 - beta1)
//   v  = beta2 * v + (1 - beta2) * g * g           u = max(u, v) with amsgrad, else v
//   w' = w * (1 - lr * weight_decay) - rate * m / (sqrt(u) / root_correction2 + eps)
//   w' = +0.0 where not mask
//   importance += alpha * (value(w or w', grad) - importance) unless lr = 0
//   rate = lr / (1 - beta1^step),  root_correction2 = sqrt(1 - beta2^step)
//
//   memory a parameter, fp32, bytes     w  g  m  v  imp  mask
//     read                              4  4  4  4   4    1        each byte once: the pass is
//     written                           4     4  4   4             bound by memory, 37 bytes each
//
// Grid, blocks, lanes and rounding: step.cuh. Moments of bf16 parameters are used before they are
// rounded. The corrections are computed on the device in double, 1 - beta^step as
// -expm1(step * log(beta)), which keeps the digits that a power near 1 loses. NaN and infinity pass
// through as in torch, except that a masked weight is always +0.0.
// Source: Loshchilov and Hutter, "Decoupled Weight Decay Regularization", ICLR 2019.
#include "cuda/adamw_step.h"
#include "cuda/step_launch.cuh"

namespace evoprune::cuda {

struct Adamw {
  using Args = AdamwStepArgs;
  static constexpr bool kSquares = true;

  static __device__ __forceinline__ bool reads_moment(const StepFactors&) { return true; }

  static __device__ __forceinline__ StepFactors factors(const Args& a, double lr, float step) {
    StepFactors f{};
    f.rate = static_cast<float>(lr / -expm1(step * a.log_beta1));
    f.root_correction2 = static_cast<float>(sqrt(-expm1(step * a.log_beta2)));
    f.weight_factor = static_cast<float>(__dsub_rn(1.0, __dmul_rn(lr, a.weight_decay)));
    return f;
  }

  template <int kCount>
  static __device__ __forceinline__ float step(const Args& a, const StepTensor& t,
                                               const StepFactors& f, StepCells<kCount>& c, int k,
                                               float g) {
    const float m = a.first_moment.operator()<FloatMath>(c.moment[k], g);
    const float v = fmaf(__fmul_rn(a.square_weight, g), g, __fmul_rn(c.square[k], a.beta2));
    float u = v;
    if (t.largest_square != nullptr) {
      const float before = c.largest[k];
      u = before > v || before != before ? before : v;  // NaN wins from either side
      c.largest[k] = u;
    }
    c.moment[k] = m;
    c.square[k] = v;
    const float denominator = __fadd_rn(sqrtf(u) / f.root_correction2, a.eps);
    return __fadd_rn(__fmul_rn(c.w[k], f.weight_factor), __fmul_rn(-f.rate, m) / denominator);
  }
};

template <typename P, typename S, bool kUsual>
__global__ void __launch_bounds__(kStepThreads, kStepBlocks<Adamw, S>)
    adamw_step_kernel(const __grid_constant__ StepLaunch<AdamwStepArgs> launch) {
  step_chunk<Adamw, P, S, kUsual>(launch);
}

template <bool kUsual>
static void launch_adamw(const AdamwStepArgs& args, const StepItem* items, int64_t count,
                         cudaStream_t stream) {
  static constexpr StepKernel<AdamwStepArgs> kKernels[] = {
      adamw_step_kernel<float, float, kUsual>, adamw_step_kernel<__nv_bfloat16, float, kUsual>,
      adamw_step_kernel<__nv_bfloat16, __nv_bfloat16, kUsual>};
  launch_steps<Adamw>(kKernels, args, items, count, stream);
}

void adamw_step(const AdamwStepArgs& args, const StepItem* items, int64_t count,
                cudaStream_t stream) {
  if (is_usual(args.shared))
    launch_adamw<true>(args, items, count, stream);
  else
    launch_adamw<false>(args, items, count, stream);
}

}  // namespace evoprune::cuda
