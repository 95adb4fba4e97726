// One index of the lists of an optimizer step, checked: what csrc/ops and `_native` prepare for the
// kernels.
#pragma once

#include "cpu/kernels.h"

namespace evoprune {

struct StepEntry {
  StepTensor tensor;
  DType param_dtype, state_dtype;
  float* step;  // how many steps the parameter took
};

}  // namespace evoprune
