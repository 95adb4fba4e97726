// The layout "cpu" of block and bitmask weights: strips of R rows that keep the same columns.
//
//   block:RxC  R = gcd(bn, 16), bk = C        bitmask  R = 1, bk = 1
//
//   one strip, R = 4, bk = 2, two entries (columns 2 and 6)          '.' is not stored
//
//     row 0   .  .  a0 b0 .  .  c0 d0        values   a0 a1 a2 a3  b0 b1 b2 b3 | c0 c1 c2 c3  d0 ..
//     row 1   .  .  a1 b1 .  .  c1 d1                 [entries, bk, R]: column by column
//     row 2   .  .  a2 b2 .  .  c2 d2        columns  2 | 6       the first column of each entry
//     row 3   .  .  a3 b3 .  .  c3 d3        row_ptr  int32 [strips + 1]: where a strip's entries
//     start
//
// Columns are int32, or uint16 for a bitmask of up to 65536 columns. Entries may reach beyond
// column K (a block cut off by the edge): x is padded with zeros to `padded` columns. A work unit
// of the kernels is a tile of 16 rows, 16 / R strips, whose sums go through one small buffer:
//
//   sums [tokens of the panel, 16]  ->  finish() writes 16 outputs of one token at a time
#pragma once

#include "cpu/epilogue.h"
#include "cpu/stored.h"

namespace evoprune::EVOPRUNE_ISA {

inline constexpr int kTile = 16;

// One tile's share of y: `count` rows from `row`.
struct TileRows {
  int64_t row;
  int64_t count;
};
inline TileRows tile_rows(int64_t tile, int64_t out_features) {
  const int64_t row = tile * kTile;
  const int64_t left = out_features - row;
  return {row, left < kTile ? left : kTile};
}

// Calls run.template operator()<T, Index, R>() with the types of values and columns and the rows of a
// strip of a block weight.
template <typename Run>
EVOPRUNE_INLINE void with_strip(const StripArgs& a, Run run) {
  with_stored(a.dtype, [&]<typename T>() {
    switch (a.strip) {
      case 16:
        return a.narrow ? run.template operator()<T, uint16_t, 16>()
                        : run.template operator()<T, int32_t, 16>();
      case 8:
        return run.template operator()<T, int32_t, 8>();
      case 4:
        return run.template operator()<T, int32_t, 4>();
      case 2:
        return run.template operator()<T, int32_t, 2>();
      default:
        return run.template operator()<T, int32_t, 1>();
    }
  });
}

}  // namespace evoprune::EVOPRUNE_ISA
