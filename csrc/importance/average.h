// The running average that every importance rule with state shares; see importance/base.py for how
// alpha_t is chosen.
//
//   avg += alpha * (value - avg)
//
//   alpha < 1/2   avg   + alpha       * (value - avg)     the small correction is added to the
//   else          value + (alpha - 1) * (value - avg)     closer end, so alpha = 1 gives `value`
//
// `Math` says what a vector can do: Math::fma(a, b, c), Math::mul(a, b) (which is never fused with
// what follows), Math::abs(a), Math::all(float). The CPU passes its SIMD vector, CUDA a float.
// Source: torch.lerp, which the reference calls.
#pragma once

#include "core/host_device.h"

namespace evoprune::importance {

struct Average {
  float factor = 0;
  bool from_state = true;

  Average() = default;
  EVOPRUNE_HD explicit Average(double alpha)
      : factor(static_cast<float>(alpha < 0.5 ? alpha : alpha - 1)), from_state(alpha < 0.5) {}

  template <typename Math, typename V>
  EVOPRUNE_HD V operator()(V state, V value) const {
    return Math::fma(Math::all(factor), value - state, from_state ? state : value);
  }
};

}  // namespace evoprune::importance
