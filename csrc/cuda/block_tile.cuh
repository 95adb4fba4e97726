// Tiles in shared memory and fragments for the block kernels, the same for 16-bit numbers and f32.
//
// A pipeline step covers 128 bytes of the summed dimension: 64 numbers of 16 bits, 32 of f32; it is
// four mma steps of 32 bytes (m16n8k16, or m16n8k8 of tf32). Pieces of 16 bytes are permuted so
// that neither cp.async nor ldmatrix meets a bank twice:
//
//   WideTile   the summed dimension along a row            TallTile   the summed dimension down
//   [rows][128 bytes]                                       [64 or 32][columns]
//   piece p of row r is kept at p ^ (r % 8)                 piece p of row r at p ^ twist(r)
//   read by ldmatrix                                        read by ldmatrix.trans; f32 by words
//
// f32 goes through the tensor cores as tf32: both operands are rounded to 10 bits of mantissa, to
// nearest, ties away from zero (cvt.rna), an error of at most 2^-11 a factor; sums stay f32.
#pragma once

#include "core/host_device.h"
#include "cuda/ptx.cuh"

namespace evoprune::cuda {

inline constexpr int kStepBytes = 128;
inline constexpr int kLeastSharedBytes = 99 * 1024;  // that a thread block may have: sm_86, sm_89
inline constexpr int kMmaSteps = 4;                  // of 32 bytes
template <typename T>
inline constexpr int kStep = kStepBytes / static_cast<int>(sizeof(T));
template <typename T>
inline constexpr bool kIsFloat = sizeof(T) == 4;

__device__ __forceinline__ void mma(float (&d)[4], const uint32_t (&a)[4], uint32_t b0, uint32_t b1,
                                    float /*tag*/) {
  ptx::mma_m16n8k8_tf32(d, a, b0, b1);
}
template <typename T>
__device__ __forceinline__ void mma(float (&d)[4], const uint32_t (&a)[4], uint32_t b0, uint32_t b1,
                                    T tag) {
  ptx::mma_m16n8k16(d, a, b0, b1, tag);
}

// f32 as the tensor cores take it; 16-bit numbers as they are.
template <typename T>
__device__ __forceinline__ void round_operand(uint32_t (&r)[4]) {
  if constexpr (kIsFloat<T>) {
#pragma unroll
    for (int i = 0; i < 4; ++i) r[i] = ptx::cvt_tf32(__uint_as_float(r[i]));
  }
}

struct WideTile {
  // Where piece `piece` of row `row` is kept.
  static __device__ __forceinline__ uint32_t place(int row, int piece) {
    return static_cast<uint32_t>(row * kStepBytes + ((piece ^ (row & 7)) << 4));
  }
  // The lane's address for ldmatrix.x4 of mma step 0; for step s flip bits: ^ (s << 5).
  //   a: 16 rows, both halves of the step          b: two groups of 8 rows, both halves of each
  static __device__ __forceinline__ uint32_t lane_a(int lane) {
    return place(lane % 16, lane / 16);
  }
  static __device__ __forceinline__ uint32_t lane_b(int lane) {
    return place(lane % 8 + lane / 16 * 8, lane / 8 % 2);
  }
};

template <typename T, int kColumns>
struct TallTile {
  static constexpr int kPitch = kColumns * static_cast<int>(sizeof(T));
  static constexpr int kPieces = kPitch / 16;
  static constexpr int kInLine = kPieces < 8 ? kPieces : 8;  // pieces of a row in 128 bytes
  static_assert(kPitch % 32 == 0, "a fragment is 16 columns wide");

  static constexpr EVOPRUNE_HD int twist(int row) {
    if (!kIsFloat<T>) return row / (8 / kInLine) & (kInLine - 1);
    return kInLine == 8 ? 2 * (row & 3) : 2 * (row >> 1 & 1);
  }
  static __device__ __forceinline__ uint32_t place(int row, int piece) {
    return static_cast<uint32_t>(row * kPitch + ((piece ^ twist(row)) << 4));
  }
};

// A warp's fragments of a TallTile, 16 columns each: as two b fragments, b0 and b1 of columns 0 to
// 7, then of columns 8 to 15; or (kAsA) as one a fragment whose rows are the tile's columns.
template <typename T, int kColumns, int kFragments, bool kAsA>
class TallReader {
  using Tile = TallTile<T, kColumns>;
  static constexpr int kAddresses = kIsFloat<T> ? 2 : 1;

 public:
  // `tile` of stage 0; `column` is that of the first fragment.
  __device__ __forceinline__ TallReader(uint32_t tile, int column, int lane) {
#pragma unroll
    for (int f = 0; f < kFragments; ++f) {
      const int first = column + 16 * f, high = lane / 8 % 2, higher = lane / 16;
      if constexpr (kIsFloat<T>) {
#pragma unroll
        for (int right = 0; right < 2; ++right) {
          const int c = first + 8 * right + lane / 4;
          at_[f][right] = tile + Tile::place(lane % 4, c / 4) + 4 * (c % 4);
        }
      } else {
        at_[f][0] = tile + Tile::place(lane % 8 + 8 * (kAsA ? higher : high),
                                       first / 8 + (kAsA ? high : higher));
      }
    }
  }

  // The addresses stay in registers, instead of being computed anew in every step.
  __device__ __forceinline__ void keep() {
#pragma unroll
    for (int f = 0; f < kFragments; ++f)
#pragma unroll
      for (int i = 0; i < kAddresses; ++i) at_[f][i] = ptx::kept(at_[f][i]);
  }

  // Fragment `f` of mma step `step` in the stage that begins at `stage`.
  __device__ __forceinline__ void operator()(uint32_t (&r)[4], int f, int step,
                                             uint32_t stage) const {
    if constexpr (kIsFloat<T>) {
#pragma unroll
      for (int i = 0; i < 4; ++i) {
        const int down = kAsA ? i / 2 : i % 2, right = kAsA ? i % 2 : i / 2;
        r[i] = ptx::ld_shared(at_[f][right] + stage + (4 * down + 8 * step) * Tile::kPitch);
      }
    } else {
      ptx::ldmatrix_x4_trans(r, at_[f][0] + stage + 16 * step * Tile::kPitch);
    }
  }

 private:
  uint32_t at_[kFragments][kAddresses];
};

// Which rows of a TallTile a thread copies: row(i), i < kRows, all within 16 aligned rows, so that
// they belong to one block. Eight neighbouring threads fill 128 bytes without a bank twice.
template <typename T, int kColumns, int kThreads>
struct TallCopy {
  using Tile = TallTile<T, kColumns>;
  static constexpr int kRows = kStep<T> * Tile::kPieces / kThreads;
  static constexpr int kApart = 16 / kRows;
  static_assert(kRows >= 1 && 16 % kRows == 0, "a thread's rows lie within 16");

  static __device__ __forceinline__ int piece(int thread) { return thread % Tile::kPieces; }
  static __device__ __forceinline__ int row(int thread) {  // row(0); row(i) = row(0) + kApart * i
    const int r = thread / Tile::kPieces;
    return r % kApart + 16 * (r / kApart);
  }
  // The place of row(i), from that of row(0): the twist is a matter of single bits.
  static __device__ __forceinline__ uint32_t place(uint32_t first, int i) {
    return (first ^ Tile::twist(kApart * i) << 4) + kApart * i * Tile::kPitch;
  }
  static_assert(kRows == 1 || kApart * Tile::kPitch % 128 == 0, "rows do not carry into the twist");
};

template <typename T, int kMTiles, int kNTiles>
__device__ __forceinline__ void multiply(float (&sums)[kMTiles][kNTiles][4],
                                         uint32_t (&a)[kMTiles][4], uint32_t (&b)[kNTiles / 2][4]) {
#pragma unroll
  for (int i = 0; i < kMTiles; ++i) round_operand<T>(a[i]);
#pragma unroll
  for (int j = 0; j < kNTiles / 2; ++j) round_operand<T>(b[j]);
#pragma unroll
  for (int i = 0; i < kMTiles; ++i)
#pragma unroll
    for (int j = 0; j < kNTiles; ++j)
      mma(sums[i][j], a[i], b[j / 2][j % 2 * 2], b[j / 2][j % 2 * 2 + 1], T{});
}

// Wait until all but kPending copies of this thread are there, and those of its pipeline's others.
template <int kPending, bool kOneWarp>
__device__ __forceinline__ void wait_for_copies() {
  ptx::cp_async_wait<kPending>();
  if constexpr (kOneWarp)
    __syncwarp();
  else
    __syncthreads();
}

}  // namespace evoprune::cuda
