// Evolution: avg += alpha * (w_new - avg), score = |avg|. w_new is the weight as it is stored:
// after the step, the mask and the rounding to its dtype. Source: "Systematic Weight Evaluation for
// Pruning Large Language Models", arXiv 2502.17071.
#pragma once

#include "core/host_device.h"

namespace evoprune::importance {

struct Evolution {
  static constexpr bool kHasState = true;

  template <typename Math, typename V>
  static EVOPRUNE_HD V value(V /*w_old*/, V w_new, V /*gradient*/) {
    return w_new;
  }
};

}  // namespace evoprune::importance
