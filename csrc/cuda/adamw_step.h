// adamw_step_ on the device; the kernel is in adamw_step.cu.
#pragma once

#include "cuda/step.h"

namespace evoprune::cuda {

struct AdamwStepArgs {
  StepShared shared;
  importance::Average first_moment;
  float beta2, square_weight, eps;  // square_weight = 1 - beta2
  double log_beta1, log_beta2, weight_decay;
};

void adamw_step(const AdamwStepArgs& args, const StepItem* items, int64_t count,
                cudaStream_t stream);

}  // namespace evoprune::cuda
