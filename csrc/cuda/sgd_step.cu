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
//     written                           4     4   4                bound by memory, 29 bytes each
//
// Grid, blocks, lanes and rounding: step.cuh. The buffer of bf16 parameters is used before it is
// rounded. At the first step the buffer is written and never read.
// Source: Sutskever et al., "On the importance of initialization and momentum in deep learning",
// ICML 2013, in the form of torch.optim.SGD.
#include "cuda/sgd_step.h"
#include "cuda/step_launch.cuh"

namespace evoprune::cuda {

struct Sgd {
  using Args = SgdStepArgs;
  static constexpr bool kSquares = false;

  static __device__ __forceinline__ bool reads_moment(const StepFactors& f) { return f.step != 1; }

  static __device__ __forceinline__ StepFactors factors(const Args&, double lr, float) {
    StepFactors f{};
    f.rate = static_cast<float>(lr);
    return f;
  }

  template <int kCount>
  static __device__ __forceinline__ float step(const Args& a, const StepTensor& t,
                                               const StepFactors& f, StepCells<kCount>& c, int k,
                                               float g) {
    float d = a.decays ? fmaf(c.w[k], a.weight_decay, g) : g;
    if (t.moment != nullptr) {
      float b = d;
      if (reads_moment(f)) b = fmaf(d, a.undampened, __fmul_rn(c.moment[k], a.momentum));
      c.moment[k] = b;
      d = a.nesterov ? fmaf(b, a.momentum, d) : b;
    }
    return fmaf(d, -f.rate, c.w[k]);
  }
};

template <typename P, typename S, bool kUsual>
__global__ void __launch_bounds__(kStepThreads, kStepBlocks<Sgd, S>)
    sgd_step_kernel(const __grid_constant__ StepLaunch<SgdStepArgs> launch) {
  step_chunk<Sgd, P, S, kUsual>(launch);
}

template <bool kUsual>
static void launch_sgd(const SgdStepArgs& args, const StepItem* items, int64_t count,
                       cudaStream_t stream) {
  static constexpr StepKernel<SgdStepArgs> kKernels[] = {
      sgd_step_kernel<float, float, kUsual>, sgd_step_kernel<__nv_bfloat16, float, kUsual>,
      sgd_step_kernel<__nv_bfloat16, __nv_bfloat16, kUsual>};
  launch_steps<Sgd>(kKernels, args, items, count, stream);
}

void sgd_step(const SgdStepArgs& args, const StepItem* items, int64_t count, cudaStream_t stream) {
  if (is_usual(args.shared))
    launch_sgd<true>(args, items, count, stream);
  else
    launch_sgd<false>(args, items, count, stream);
}

}  // namespace evoprune::cuda
