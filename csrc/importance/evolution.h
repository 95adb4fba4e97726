// Evolution: avg += alpha * (w - avg), score = |avg|. The usual w is the weight as it is stored:
// after the step, the mask and the rounding to its dtype. EvolutionAbs averages |w|: a weight that
// oscillates around zero keeps its size. Source: "Systematic Weight Evaluation for Pruning Large
// Language Models", arXiv 2502.17071.
#pragma once

#include "core/host_device.h"
#include "core/step_rule.h"

namespace evoprune::importance {

struct Evolution {
  static constexpr bool kHasState = true;
  static constexpr StepPoint kPost = StepPoint::stored;

  template <typename Math, typename V>
  static EVOPRUNE_HD V value(V w, V /*gradient*/) {
    return w;
  }
};

struct EvolutionAbs {
  static constexpr bool kHasState = true;
  static constexpr StepPoint kPost = StepPoint::stored;

  template <typename Math, typename V>
  static EVOPRUNE_HD V value(V w, V /*gradient*/) {
    return Math::abs(w);
  }
};

}  // namespace evoprune::importance
