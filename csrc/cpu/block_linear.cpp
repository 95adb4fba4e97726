// block_linear: y = act(x W^T + b), W in strips of R rows (cpu/strips.h).
//
//   y[t, n] = act(sum over the kept blocks of row n, k in the block: W[n, k] * x[t, k]  +  b[n])
//
//   R = 16 (16x16, 32x32, 64x64, 16x1, ...)   rows in lanes,   cpu/row_lanes.h; one or two
//                                             tokens: several tiles at once, cpu/row_streams.h
//   R = 8, 4, 2, 1                            tokens in lanes, cpu/token_lanes.h
//
// Work unit: a tile of 16 rows, all tokens. Sums in float32; the same for every number of threads.
// Source: the two loop orders of Elsen et al., "Fast Sparse ConvNets", 2020 (block SpMM on CPUs).
#include "cpu/row_streams.h"
#include "cpu/token_lanes.h"

namespace evoprune::EVOPRUNE_ISA {

namespace {

template <typename T, typename Index>
void rows(const StripArgs& a, int64_t begin, int64_t end) {
  has_streams(a) ? rows_in_streams<T, Index>(a, begin, end)
                 : rows_in_lanes<T, Index>(a, begin, end);
}

}  // namespace

void block_linear(const StripArgs& a, int64_t begin, int64_t end) {
  with_strip(a, [&]<typename T, typename Index, int R>() {
    if constexpr (R == kTile)
      rows<T, Index>(a, begin, end);
    else
      tokens_in_lanes<T, Index, R>(a, begin, end);
  });
}

}  // namespace evoprune::EVOPRUNE_ISA
