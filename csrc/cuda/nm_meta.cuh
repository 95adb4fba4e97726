// Metadata of 2:4 on the device: from canonical rows in shared memory to the words of the layout
// "cuda" (core/nm_cuda_layout.h), and the bits of one group.
//
//   MetaTile   64 rows x 16 words; word w of a row: its columns 32w .. 32w + 31, 8 groups of 4 bits
//              word w of row r is kept at 16 r + (w ^ swizzle(r)), so that
//                a row written by a warp, or two rows, meets every bank once
//                16-bit order: rows 16s + g (s = 0, 1; g = 0 .. 7) of one word: 16 banks
//                 8-bit order: rows g + 8h of two words: 32 banks
#pragma once

#include <cstdint>

#include "cuda/ptx.cuh"

namespace evoprune::cuda {

// Eight groups that keep nothing: indices 0 and 1.
inline constexpr uint32_t kEmptyGroups = 0x44444444;

// The kept places of a group of 4 (at most 2) as bits -> its two indices, first | second << 2,
// filled up with the lowest free places. A table of 16 entries of 4 bits; too many give an empty one.
__device__ __forceinline__ uint32_t nm24_indices(uint32_t kept) {
  return static_cast<uint32_t>(0x444e4dcc49884444ull >> (4 * kept)) & 15;
}

struct MetaTile {
  static constexpr int kRows = 64, kWords = 16;

  uint32_t words[kRows * kWords];

  static __device__ __forceinline__ unsigned place(unsigned row, unsigned word) {
    const unsigned swizzle = (row >> 1 & 3) << 1 | (row >> 3 & 1) << 3 | (row >> 4 & 1);
    return row * kWords + (word ^ swizzle);
  }
  __device__ __forceinline__ uint32_t word(unsigned row, unsigned w) const {
    return words[place(row, w)];
  }

  // The bytes of type U (1, 2 or 4) from byte `byte` of a row on.
  template <typename U>
  __device__ __forceinline__ void set(unsigned row, unsigned byte, U bits) {
    reinterpret_cast<U*>(&words[place(row, byte / 4)])[byte % 4 / sizeof(U)] = bits;
  }

  // Writes the 512 bytes of tile `tile` (columns 64 tile .. + 63), 16 a lane.
  __device__ __forceinline__ void store(unsigned tile, unsigned lane, bool eight_bit,
                                        uint32_t* out) const {
    const unsigned g = lane / 4, t = lane % 4;
    uint32_t w[4];
#pragma unroll
    for (unsigned i = 0; i < 4; ++i) {
      if (eight_bit) {
        w[i] = word(16 * i + g + 8 * (t % 2), 2 * tile + t / 2);
      } else {
        const unsigned row = 16 * (2 * (i % 2) + t / 2) + g, from = 2 * tile + i / 2;
        w[i] = __byte_perm(word(row, from), word(row + 8, from), t % 2 == 0 ? 0x5410 : 0x7632);
      }
    }
    ptx::store_global16(out + 4 * lane, make_uint4(w[0], w[1], w[2], w[3]));
  }
};

// -0.0 becomes +0.0; every other bit pattern stays.
__device__ __forceinline__ uint32_t positive_zero(uint32_t x) {
  return x == 0x80000000u ? 0 : x;
}
__device__ __forceinline__ uint16_t positive_zero(uint16_t x) {
  return x == 0x8000u ? uint16_t{0} : x;
}
// Of two 16-bit numbers.
__device__ __forceinline__ uint32_t positive_zeros(uint32_t x) {
  if ((x & 0xffffu) == 0x8000u) x &= 0xffff0000u;
  return x >> 16 == 0x8000u ? x & 0xffffu : x;
}

}  // namespace evoprune::cuda
