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

namespace {

template <typename T>
void run(const StripArgs& a, int64_t begin, int64_t end) {
  a.narrow ? tokens_in_lanes<T, uint16_t, 1>(a, begin, end)
           : tokens_in_lanes<T, int32_t, 1>(a, begin, end);
}

}  // namespace

void bitmask_linear(const StripArgs& a, int64_t begin, int64_t end) {
  switch (a.dtype) {
    case DType::f32:
      return run<float>(a, begin, end);
    case DType::bf16:
      return run<bf16>(a, begin, end);
    case DType::i8:
      return run<int8_t>(a, begin, end);
  }
}

}  // namespace evoprune::EVOPRUNE_ISA
