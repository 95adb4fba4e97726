// Which importance a fused optimizer step advances, and which weight it looks at; shared by the CPU
// and the CUDA kernels.
//
//   point    weight in value(w, g)                                       op: point=
//   before   as stored before the step                                   "pre"
//   updated  after the step, rounded as it is stored, before the mask    "post", rules with a gradient
//   stored   after the step, as it is stored: rounded, +0.0 where not    "post", rules of the weight
//            mask                                                        alone
//
// A gradient tells what a weight would be worth that the mask holds at zero; the masked weight times
// its gradient would be worth nothing for ever. So `updated` looks before the mask.
#pragma once

#include <cstdint>

namespace evoprune {

enum class StepRule : int32_t {
  none = 0,
  evolution = 1,
  evolution_abs = 2,
  taylor = 3,
  movement = 4
};
enum class StepPoint : int32_t { before = 0, updated = 1, stored = 2 };

}  // namespace evoprune
