// Magnitude: score = |w|. Nothing is kept between steps, so the fused step has nothing to do; the
// rule "none" is the same to it.
// Source: Han et al., "Learning both Weights and Connections for Efficient Neural Networks", 2015.
#pragma once

#include "core/step_rule.h"

namespace evoprune::importance {

struct Magnitude {
  static constexpr bool kHasState = false;
  static constexpr StepPoint kPost = StepPoint::stored;
};

}  // namespace evoprune::importance
