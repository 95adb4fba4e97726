// Taylor: avg += alpha * (|w_old * g| - avg), score = avg. g is the gradient after unscaling and
// `maximize`, before weight decay.
// Source: Molchanov et al., "Importance Estimation for Neural Network Pruning", CVPR 2019.
#pragma once

#include "core/host_device.h"

namespace evoprune::importance {

struct Taylor {
  static constexpr bool kHasState = true;

  template <typename Math, typename V>
  static EVOPRUNE_HD V value(V w_old, V /*w_new*/, V gradient) {
    return Math::abs(w_old * gradient);
  }
};

}  // namespace evoprune::importance
