// Movement: avg += alpha * (-(w * g) - avg), score = avg: high where steps take the weight away from
// zero. g and the usual w are those of taylor.h.
// Source: Sanh et al., "Movement Pruning: Adaptive Sparsity by Fine-Tuning", NeurIPS 2020.
#pragma once

#include "core/host_device.h"
#include "core/step_rule.h"

namespace evoprune::importance {

struct Movement {
  static constexpr bool kHasState = true;
  static constexpr StepPoint kPost = StepPoint::updated;

  template <typename Math, typename V>
  static EVOPRUNE_HD V value(V w, V gradient) {
    return -Math::mul(w, gradient);
  }
};

}  // namespace evoprune::importance
