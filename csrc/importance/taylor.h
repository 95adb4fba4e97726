// Taylor: avg += alpha * (|w * g| - avg), score = avg. g is the gradient after unscaling and
// `maximize`, before any decay; the usual w is the one that g was computed at, before the step.
// Source: Molchanov et al., "Importance Estimation for Neural Network Pruning", CVPR 2019.
#pragma once

#include "core/host_device.h"
#include "core/step_rule.h"

namespace evoprune::importance {

struct Taylor {
  static constexpr bool kHasState = true;
  static constexpr StepPoint kPost = StepPoint::updated;

  template <typename Math, typename V>
  static EVOPRUNE_HD V value(V w, V gradient) {
    return Math::abs(Math::mul(w, gradient));
  }
};

}  // namespace evoprune::importance
