// Tiles in shared memory: where a 16-byte chunk of a row lies, and loops that the compiler unrolls.
//
//   rows of 64, 128 or 256 bytes, one after another; within a row the chunks are permuted by an
//   exclusive or, so that the same chunk of 8 rows (an ldmatrix) and the chunks of one row (a copy)
//   both lie in 8 different groups of 4 banks:
//
//     128 and 256 bytes   chunk c of row r is at c ^ (r % 8)          row 0   0 1 2 3 4 5 6 7
//                                                                     row 1   1 0 3 2 5 4 7 6
//      64 bytes           at c ^ (r / 2 % 4): two rows fill the banks rows 0, 1   0 1 2 3 0 1 2 3
//                                                                     rows 2, 3   1 0 3 2 1 0 3 2
//   The permutation repeats after 8 rows, so rows 8 apart differ by a constant.
#pragma once

#include <cstdint>

namespace evoprune::cuda {

template <int kRowBytes>
__device__ __forceinline__ int swizzled(int row, int chunk) {
  static_assert(kRowBytes == 64 || kRowBytes == 128 || kRowBytes == 256,
                "a row is half of, one or two lines of the 32 banks");
  const int flip = kRowBytes == 64 ? row / 2 % 4 : row % 8;
  return row * kRowBytes + (chunk ^ flip) * 16;
}

template <int kValue>
struct Index {
  static constexpr int value = kValue;
};

// f(Index<0>), f(Index<1>), .. f(Index<kCount - 1>)
template <int kCount, int kFrom = 0, typename F>
__device__ __forceinline__ void unrolled(const F& f) {
  if constexpr (kFrom < kCount) {
    f(Index<kFrom>{});
    unrolled<kCount, kFrom + 1>(f);
  }
}

}  // namespace evoprune::cuda
