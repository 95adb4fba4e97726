// The end of a product with a 2:4 weight: from sums in registers to rows of y.
//
// mma leaves y transposed: lane 4g + t holds outputs g and g + 8 of tokens 2t and 2t + 1. A warp
// turns its 64 outputs x tokens round through shared memory, as 32-bit sums, so that the loop over
// activations is not unrolled and a part of a split sum leaves the same way:
//
//   a token, 68 words    | n 0-3 | n 8-11 | .. | n 56-59 | 4 unused | n 4-7 | .. | n 60-63 |
//                          word 0                                     word 36
//   write   banks 8t + 4 (g / 4) + g % 4: all 32      read   8 lanes, 128 bytes in a row, twice
//
// Then lane 8i + c has outputs 8c .. 8c + 7 of token i: 16 bytes of y, 128 bytes side by side.
// Its next token is four on, and so are its addresses, by a constant each. Where N is no multiple of
// 8 or y not aligned, a lane has one output, 32 side by side.
//
// The parts of a split sum are kept as they are read, [splits, tokens, rows64], the 64 outputs of a
// tile as above without the gap; they are added in ascending order.
#pragma once

#include "core/nm_cuda_layout.h"
#include "cuda/nm_linear_finish.cuh"
#include "cuda/ptx.cuh"
#include "cuda/tile.cuh"

namespace evoprune::cuda {

inline constexpr int kStagedToken = 68, kStagedOdd = 36;  // words

__device__ __forceinline__ int staged_word(int token, int n) {
  return token * kStagedToken + n / 4 % 2 * kStagedOdd + n / 8 * 4 + n % 4;
}

template <typename Sum>
struct alignas(16) Sums4 {
  Sum at[4];
};

// What a warp stores: tokens from `token` on, `count` of them, of the 64 rows from `row` on.
struct NmWarpPlace {
  int64_t row, token, split;
  int first, count;  // of the staged tokens, those that exist
};

// Sums of a token from `word` on, of the kParts warps that share the stages.
template <int kParts, int kWords, typename Sum>
__device__ __forceinline__ void staged(Sum* sums, const Sum* region, int word, int part_words) {
  unrolled<kParts>([&](auto part) {
    const Sum* from = region + part.value * part_words + word;
    if constexpr (kWords == 4) {
      const Sums4<Sum> four = *reinterpret_cast<const Sums4<Sum>*>(from);
#pragma unroll
      for (int i = 0; i < 4; ++i) sums[i] = part.value == 0 ? four.at[i] : sums[i] + four.at[i];
    } else {
      sums[0] = part.value == 0 ? from[0] : sums[0] + from[0];
    }
  });
}

// d[m][j]: the 16 x 8 sums of mma.sp, rows 16m and tokens 8j on -> the warp's region.
template <typename Sum, int kTokens8>
__device__ __forceinline__ void stage_sums(Sum* region, const Sum (&d)[4][kTokens8][4]) {
  const int lane = threadIdx.x % 32, g = lane / 4, t = lane % 4;
  Sum* to = region + staged_word(2 * t, g);
#pragma unroll
  for (int m = 0; m < 4; ++m)
#pragma unroll
    for (int j = 0; j < kTokens8; ++j)
#pragma unroll
      for (int i = 0; i < 4; ++i)
        to[(8 * j + i % 2) * kStagedToken + (2 * m + i / 2) * 4] = d[m][j][i];
}

template <int kParts, typename Sum>
__device__ __forceinline__ void store_part(const Sum* region, int part_words,
                                           const NmWarpPlace& place, const NmOutput& out) {
  const int lane = threadIdx.x % 32, c = lane % 8, first = lane / 8;
  const int64_t rows64 = nm_cuda_padded(out.rows);
  if (place.row >= rows64) return;
  Sum* part = static_cast<Sum*>(out.parts) +
              (place.split * out.tokens + place.token + first) * rows64 + place.row + 4 * c;
  int word = (place.first + first) * kStagedToken + 4 * c;
#pragma unroll 1
  for (int i = first; i < place.count; i += 4) {
    Sum low[4], high[4];
    staged<kParts, 4>(low, region, word, part_words);
    staged<kParts, 4>(high, region, word + kStagedOdd, part_words);
    ptx::store_global16(part, words4(low));
    ptx::store_global16(part + 32, words4(high));
    part += 4 * rows64;
    word += 4 * kStagedToken;
  }
}

template <typename T, int kParts, typename Sum>
__device__ __forceinline__ void store_vectors(const Sum* region, int part_words,
                                              const NmWarpPlace& place, const NmOutput& out) {
  const int lane = threadIdx.x % 32, c = lane % 8, first = lane / 8;
  const int64_t n = place.row + 8 * c, token = place.token + first;
  if (n >= out.rows) return;
  const NmRowTerms<Sum, 8, true> terms(out, n);
  const float* x_scale = x_scales<Sum>(out, token);
  const int64_t row_bytes = out.rows * output_bytes<T>(out);
  char* y = static_cast<char*>(out.y) + token * row_bytes + n * output_bytes<T>(out);
  const Sum* from = region + (place.first + first) * kStagedToken + 4 * c;
#pragma unroll 1
  for (int i = first; i < place.count; i += 4) {
    Sum sums[8];
    staged<kParts, 4>(sums, from, 0, part_words);
    staged<kParts, 4>(sums + 4, from, kStagedOdd, part_words);
    float z[8];
    finish(z, sums, terms, x_scale, out.epilogue.activation);
    with_output<T>(out, [&](auto type) { store8(reinterpret_cast<decltype(type)*>(y), z); });
    from += 4 * kStagedToken;
    y += 4 * row_bytes;
    if constexpr (kIntegerSums<Sum>) x_scale += 4;
  }
}

template <typename T, int kParts, typename Sum>
__device__ __forceinline__ void store_elements(const Sum* region, int part_words,
                                               const NmWarpPlace& place, const NmOutput& out) {
#pragma unroll 1
  for (int in = threadIdx.x % 32; in < 64; in += 32) {
    const int64_t n = place.row + in;
    if (n >= out.rows) return;
    const NmRowTerms<Sum, 1, true> terms(out, n);
#pragma unroll 1
    for (int i = 0; i < place.count; ++i) {
      const int64_t token = place.token + i;
      Sum sums[1];
      staged<kParts, 1>(sums, region, staged_word(place.first + i, in), part_words);
      float z[1];
      finish(z, sums, terms, x_scales<Sum>(out, token), out.epilogue.activation);
      with_output<T>(out, [&](auto y) {
        using Y = decltype(y);
        static_cast<Y*>(out.y)[token * out.rows + n] = from_float<Y>(z[0]);
      });
    }
  }
}

}  // namespace evoprune::cuda
