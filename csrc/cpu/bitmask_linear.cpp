// bitmask_linear: y = act(x W^T + b), W with any mask, as values and their columns (cpu/strips.h).
//
//   y[t, n] = act(sum over the kept k of row n: W[n, k] * x[t, k]  +  b[n])
//
// The bits became columns when the weight was prepared: 16 bits each, which for one token costs
// what an expansion of the bits would, and for many tokens saves it in every panel. Tokens in
// lanes, cpu/token_lanes.h, with strips of one row. Work unit: a tile of 16 rows, all tokens. Sums
// in float32; the same for every number of threads.
#include "cpu/token_lanes.h"

namespace evoprune::EVOPRUNE_ISA {

void bitmask_linear(const StripArgs& a, int64_t begin, int64_t end) {
  with_stored(a.dtype, [&]<typename T>() {
    a.narrow ? tokens_in_lanes<T, uint16_t, 1>(a, begin, end)
             : tokens_in_lanes<T, int32_t, 1>(a, begin, end);
  });
}

}  // namespace evoprune::EVOPRUNE_ISA
