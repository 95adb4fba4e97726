// The sums of the block kernels on their way out: registers -> SumTile in shared memory -> rows of
// 16 bytes. The second loop is not unrolled, so that the activations are in the code once.
#pragma once

#include "cuda/epilogue.cuh"
#include "cuda/ptx.cuh"

namespace evoprune::cuda {

// kColumns + 8 floats a row; of two neighbouring pieces of 16 bytes the order is swapped in every
// other row and every other 128 bytes, so that both ways through it are free of bank conflicts.
template <int kRows, int kColumns>
struct SumTile {
  static constexpr int kPitch = kColumns + 8;
  static constexpr int kBytes = kRows * kPitch * 4;

  static __device__ __forceinline__ uint32_t place(uint32_t row, uint32_t column) {
    const uint32_t piece = column / 4;
    return (row * kPitch + (piece ^ ((piece >> 3 ^ row) & 1)) * 4 + column % 4) * 4;
  }

  // The fragments of a warp whose first row and column are given.
  template <int kMTiles, int kNTiles>
  static __device__ __forceinline__ void put(uint32_t tile,
                                             const float (&sums)[kMTiles][kNTiles][4], int row,
                                             int column, int lane) {
#pragma unroll
    for (int i = 0; i < kMTiles; ++i)
#pragma unroll
      for (int j = 0; j < kNTiles; ++j)
#pragma unroll
        for (int h = 0; h < 2; ++h)
          ptx::st_shared(
              tile + place(row + 16 * i + 8 * h + lane / 4, column + 8 * j + lane % 4 * 2),
              sums[i][j][2 * h], sums[i][j][2 * h + 1]);
  }
};

// Where a tile of sums goes.
template <typename T>
struct Destination {
  T* corner;              // of the tile
  int64_t pitch;          // numbers from row to row
  int64_t rows, columns;  // that exist from the corner on
  int64_t first;          // column of the corner: which entry of the bias
};

// act(sum of kParts tiles + bias), 16 bytes a thread where rows are aligned to 16 bytes.
template <typename T, int kRows, int kColumns, int kParts, int kThreads>
__device__ __forceinline__ void store_tile(const char* tiles, const Destination<T>& to,
                                           const Epilogue& epilogue) {
  using Tile = SumTile<kRows, kColumns>;
  constexpr int kWide = kPer16Bytes<T>, kPieces = kColumns / kWide;
  const int column = static_cast<int>(threadIdx.x % kPieces) * kWide;
  if (column >= to.columns) return;
  float bias[kWide];
#pragma unroll
  for (int c = 0; c < kWide; ++c)
    bias[c] = column + c < to.columns ? bias_at(epilogue, to.first + column + c) : 0.0f;
  const bool whole = to.pitch % kWide == 0;
#pragma unroll 1
  for (int row = static_cast<int>(threadIdx.x / kPieces); row < kRows && row < to.rows;
       row += kThreads / kPieces) {
    float z[kWide];
#pragma unroll
    for (int c = 0; c < kWide; c += 4) {
      float4 sum = make_float4(0.0f, 0.0f, 0.0f, 0.0f);
#pragma unroll
      for (int p = 0; p < kParts; ++p) {
        const float4 part = *reinterpret_cast<const float4*>(tiles + p * Tile::kBytes +
                                                             Tile::place(row, column + c));
        sum.x += part.x, sum.y += part.y, sum.z += part.z, sum.w += part.w;
      }
      z[c] = sum.x, z[c + 1] = sum.y, z[c + 2] = sum.z, z[c + 3] = sum.w;
    }
    Vector<T, kWide> out;
#pragma unroll
    for (int c = 0; c < kWide; ++c)
      out.at[c] = from_float<T>(activate(z[c] + bias[c], epilogue.activation));
    T* y = to.corner + row * to.pitch + column;
    if (whole) {
      const uint32_t* words = reinterpret_cast<const uint32_t*>(&out);
      ptx::store_global16(y, make_uint4(words[0], words[1], words[2], words[3]));
    } else {
#pragma unroll
      for (int c = 0; c < kWide; ++c)
        if (column + c < to.columns) y[c] = out.at[c];
    }
  }
}

}  // namespace evoprune::cuda
