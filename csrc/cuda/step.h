// One optimizer step over lists of tensors, as the host code takes it. The kernels are in step.cuh.
#pragma once

#include "core/step_rule.h"
#include "cuda/device.h"
#include "importance/average.h"

namespace evoprune::cuda {

// A number that lies on the device, where only kernels read it (no synchronisation), or `value`.
struct StepNumber {
  const void* device = nullptr;
  bool is_double = false;  // what lies on the device: double or float
  double value = 0;
};

// Index i of the lists, as the kernel takes it. Pointers of lists that are not given are null.
struct StepTensor {
  void* param;
  void* grad;
  void* moment;          // m of AdamW, the momentum buffer of SGD
  void* square;          // v of AdamW
  void* largest_square;  // largest v of AdamW, with amsgrad
  float* importance;
  const uint8_t* mask;  // one byte an element, 0 = pruned
  int64_t numel;
  uint32_t index;        // i
  uint32_t first_chunk;  // chunks before this tensor in its launch
  bool vectors;          // every pointer is aligned for four elements
};

struct StepItem {
  StepTensor tensor;
  DType param_dtype, state_dtype;  // f32 or bf16
  float* step;                     // on the device: increased there; null: the host did that
  float step_value;                // then: the number of this step
};

// What a step needs of each tensor; written by the first launch, read by the others.
struct alignas(16) StepFactors {
  float rate;              // AdamW: lr / (1 - beta1^step); SGD: lr
  float root_correction2;  // AdamW: sqrt(1 - beta2^step)
  float weight_factor;     // AdamW: 1 - lr * weight_decay
  float grad_scale;        // gradients are divided by it
  uint32_t step;           // the number of this step; kSkipped: found_inf is not 0
  uint32_t averages;       // whether the importance moves: there is a rule, and lr is not 0
};
inline constexpr uint32_t kSkipped = 0xFFFFFFFF;

// What the optimizers share.
struct StepShared {
  StepFactors* factors;  // [number of tensors]
  StepNumber lr, grad_scale, found_inf;
  uint64_t seed;                // of the rounding to bf16, when `seeded`
  importance::Average average;  // of the importance
  StepRule rule;
  StepPoint point;
  float sign;          // 1, or -1 to maximize
  float sparse_decay;  // where decays_masked
  bool scaled, seeded;
  bool decays_masked;  // masked weights decay by sparse_decay and are not zeroed
};

}  // namespace evoprune::cuda
