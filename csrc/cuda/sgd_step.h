// sgd_step_ on the device; the kernel is in sgd_step.cu.
#pragma once

#include "cuda/step.h"

namespace evoprune::cuda {

struct SgdStepArgs {
  StepShared shared;
  float momentum, undampened, weight_decay;  // undampened = 1 - dampening
  bool decays, nesterov;
};

void sgd_step(const SgdStepArgs& args, const StepItem* items, int64_t count, cudaStream_t stream);

}  // namespace evoprune::cuda
