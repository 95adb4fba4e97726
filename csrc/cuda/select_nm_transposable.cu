// select_nm_transposable: of every 4 x 4 scores, the best two of each row and of each column.
//
//   mask tile = argmax over the 90 valid patterns of sum(scores * pattern)
//
//   scores [rows, columns]   | tile 0 | tile 1 | ..    thread: one tile, 4 scores of each of 4 rows;
//                            | 4 x 4  |        |       a warp reads 32 x 4 neighbours of a row
//
// A thread tries all patterns in registers: sums of row pairs are shared, 186 additions and 90
// comparisons a tile (select/transposable.h, which also fixes the order of sums and ties). Each
// score is read once and each mask byte written once, in whole sectors; at about 40 instructions a
// score, memory and instructions bound it alike. Scores beyond the edge count as 0, so a tile that
// is cut off keeps at most two in a row and in a column.
// Source: Hu et al., "Accelerating Transformer Pre-training with 2:4 Sparsity", ICML 2024 (arXiv
// 2404.01847).
#include "cuda/launch.cuh"
#include "cuda/select_nm_transposable.h"
#include "cuda/selection.cuh"
#include "select/transposable.h"

namespace evoprune::cuda {

namespace {

constexpr int kThreads = 256;

}  // namespace

struct TransposableTiles {
  const void* scores;
  uint8_t* mask;
  int64_t rows, columns;
  uint32_t tiles, across;  // of all; of a row of tiles
  bool aligned;            // four scores are one aligned load, four mask bytes one store
};

template <typename T>
__global__ void __launch_bounds__(kThreads, 4)
    select_nm_transposable_kernel(const __grid_constant__ TransposableTiles args) {
  const uint32_t tile = blockIdx.x * kThreads + threadIdx.x;
  if (tile >= args.tiles) return;
  const int64_t row = static_cast<int64_t>(tile / args.across) * 4;
  const int64_t column = static_cast<int64_t>(tile % args.across) * 4;
  const int64_t start = row * args.columns + column;
  const T* from = static_cast<const T*>(args.scores) + start;
  const int64_t rows_left = args.rows - row, columns_left = args.columns - column;
  Vector<T, 4> loaded[4] = {};
#pragma unroll
  for (int r = 0; r < 4; ++r) {
    if (r >= rows_left) continue;
    const T* at = from + r * args.columns;
    if (args.aligned) {
      loaded[r] = *reinterpret_cast<const Vector<T, 4>*>(at);
    } else {
#pragma unroll
      for (int c = 0; c < 4; ++c)
        if (c < columns_left) loaded[r].at[c] = at[c];
    }
  }
  float scores[4][4];
#pragma unroll
  for (int i = 0; i < 16; ++i) scores[i / 4][i % 4] = to_float(loaded[i / 4].at[i % 4]);
  const uint32_t kept = select::transposable_tile(scores);
#pragma unroll
  for (int r = 0; r < 4; ++r) {
    if (r >= rows_left) continue;
    uint8_t* to = args.mask + start + r * args.columns;
    if (args.aligned) {
      store_mask<4>(to, kept >> 4 * r);
    } else {
#pragma unroll
      for (int c = 0; c < 4; ++c)
        if (c < columns_left) to[c] = kept >> (4 * r + c) & 1;
    }
  }
}

void select_nm_transposable(const SelectTransposableArgs& a, cudaStream_t stream) {
  const int64_t across = ceil_div(a.columns, 4), tiles = ceil_div(a.rows, 4) * across;
  if (tiles == 0) return;
  const int four = a.dtype == DType::f32 ? 16 : 8;  // bytes
  const bool aligned = a.columns % 4 == 0 && reinterpret_cast<uintptr_t>(a.scores) % four == 0;
  const TransposableTiles args{a.scores,
                               a.mask,
                               a.rows,
                               a.columns,
                               static_cast<uint32_t>(tiles),
                               static_cast<uint32_t>(across),
                               aligned};
  const auto kernel = a.dtype == DType::f32   ? select_nm_transposable_kernel<float>
                      : a.dtype == DType::f16 ? select_nm_transposable_kernel<__half>
                                              : select_nm_transposable_kernel<__nv_bfloat16>;
  launch(kernel, dim3(static_cast<unsigned>(ceil_div(tiles, kThreads))), kThreads, 0, stream, args);
}

}  // namespace evoprune::cuda
