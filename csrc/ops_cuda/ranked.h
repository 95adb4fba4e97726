// What the bindings of the ranking selections share: density and the number that it keeps.
#pragma once

#include <cmath>

#include "ops_cuda/check.h"

namespace evoprune::binding_cuda {

inline void check_density(double density) {
  STD_TORCH_CHECK(0.0 <= density && density <= 1.0,
                  "expected 0 <= density <= 1, got density=", density);
}
// Half a unit rounds to even, as Python's `round` does.
inline int64_t count_kept(double density, int64_t entries) {
  return static_cast<int64_t>(std::nearbyint(density * static_cast<double>(entries)));
}

}  // namespace evoprune::binding_cuda
