// The layout "cuda" of a 2:4 weight [rows, columns]: values as they are, metadata as the tensor
// cores take it, so that a warp loads it with one 16-byte load a lane and no shuffle.
//
//   both padded to multiples of 64 rows and 64 columns; padding: value 0, indices 0 and 1
//
//   values T      [rows64, columns64 / 2]              row after row, the kept two of every four
//   meta   uint32 [rows64/64, columns64/64, 32, 4]     a tile of 64 x 64: four words a lane
//
//   a word holds 16 indices of 2 bits, ascending within a group, low bits first, 8 groups of 4:
//
//   16-bit values, word w of lane 4g + t        int8 values, word w of lane 4g + t
//     tile of 16 rows   2 (w % 2) + t / 2         tile of 16 rows   w
//     row of the tile   low half g, high g + 8    row of the tile   g + 8 (t % 2)
//     columns           32 (w / 2) + 16 (t % 2)   columns           32 (t / 2) .. + 31
//                       .. + 15
//
// One mma.sp m16n8k32 uses the words of two lanes of a quad (selector 0: t = 0, 1; selector 1:
// t = 2, 3), one mma.sp m16n8k64 those of all four. A lane's words cover just the values that a
// few-token kernel gives it: 8 (int8: 4) pieces of 16 bytes. Source: "PTX ISA", 9.7.14.6.
#pragma once

#include <cstdint>

#include "core/host_device.h"

namespace evoprune {

inline constexpr int kNmCudaTile = 64;

EVOPRUNE_HD int64_t nm_cuda_padded(int64_t size) {
  return (size + kNmCudaTile - 1) / kNmCudaTile * kNmCudaTile;
}

// Where the index pair of group `column / 4` of `row` is kept: its word in meta, and its lowest bit
// there (4 bits: the first index, then the second).
struct NmCudaPlace {
  int64_t word;
  int shift;
};
EVOPRUNE_HD NmCudaPlace nm_cuda_place(int64_t row, int64_t column, int64_t columns64,
                                      bool eight_bit) {
  const int64_t tile = row / kNmCudaTile * (columns64 / kNmCudaTile) + column / kNmCudaTile;
  const int r = static_cast<int>(row % kNmCudaTile), c = static_cast<int>(column % kNmCudaTile);
  const int slab = r / 16, g = r % 8, low_or_high = r % 16 / 8;
  int lane, word, shift;
  if (eight_bit) {
    lane = 4 * g + 2 * (c / 32) + low_or_high;
    word = slab;
    shift = c % 32 / 4 * 4;
  } else {
    lane = 4 * g + 2 * (slab % 2) + c % 32 / 16;
    word = slab / 2 + 2 * (c / 32);
    shift = 16 * low_or_high + c % 16 / 4 * 4;
  }
  return {(tile * 32 + lane) * 4 + word, shift};
}

}  // namespace evoprune
