// Which tile a problem gets on the tensor cores, and into how many parts its sums are split.
//
// A tile is what a block computes, rows of W x tokens; it walks along the columns in stages. A warp
// computes 64 rows x warp_tokens, over one of warps_k parts of every stage.
//
//   tile   rows x tokens   columns a stage (16-bit / 8-bit)   warps             for
//   0      128 x 128        64 / 128                          2 x 2             many tokens
//   1      128 x 64         64 / 128                          2 x 2             64 tokens, small N
//   2       64 x 32        128 / 256                          1 x 2 x 2 parts   up to 32 tokens
#pragma once

#include "core/nm_cuda_layout.h"
#include "cuda/device.h"

namespace evoprune::cuda {

struct NmTileShape {
  int rows, tokens;
  int steps;        // mma.sp steps a stage: 32 bytes of kept values, 64 bytes of x each
  int warp_tokens;  // 64 rows x warp_tokens a warp
  int warps_k;      // warps that share the steps of a stage
  int stages;       // in shared memory
  int blocks;       // a processor: what the registers are held to

  constexpr int warps() const { return rows / 64 * (tokens / warp_tokens) * warps_k; }
  constexpr int threads() const { return 32 * warps(); }
  // Columns of W and x in a stage, of values of `bytes` bytes.
  constexpr int columns(int bytes) const { return steps * 64 / bytes; }
  constexpr int meta_bytes(int bytes) const { return rows / 64 * (columns(bytes) / 64) * 512; }
  constexpr int stage_bytes(int bytes) const {
    return (rows * 32 + tokens * 64) * steps + meta_bytes(bytes);
  }
  // Sums on their way out, see nm_linear_store.cuh; they lie where the stages were.
  constexpr int staging_bytes() const { return warps() * warp_tokens * 68 * 4; }
  constexpr int shared_bytes(int bytes) const {
    const int pipeline = stages * stage_bytes(bytes);
    return pipeline > staging_bytes() ? pipeline : staging_bytes();
  }
  // Cycles of a processor for a stage: of its tensor cores (8 for an mma.sp on each of four), or of
  // its shared memory (128 bytes each: ldmatrix of every warp, and the copies).
  constexpr int stage_cycles() const {
    const int mma = rows / 16 * (tokens / 8) * steps * 8 / 4;
    const int a_warp = (4 + warp_tokens / 8) * 4 * steps / warps_k + 4;
    const int shared = warps() * a_warp + stage_bytes(2) / 128;
    return mma > shared ? mma : shared;
  }
};

inline constexpr NmTileShape kNmTiles[] = {
    // rows, tokens, steps, warp_tokens, warps_k, stages, blocks
    {128, 128, 2, 64, 1, 3, 2},
    {128, 64, 2, 32, 1, 3, 3},
    {64, 32, 4, 16, 2, 3, 3},
};
inline constexpr int kNmTileCount = sizeof(kNmTiles) / sizeof(kNmTiles[0]);

struct NmPlan {
  int tile;                        // of kNmTiles
  int64_t row_tiles, token_tiles;  // the output
  int64_t stages;                  // the columns
  int64_t splits;                  // parts of the columns, added up by a second kernel
  int64_t stages_of_split;         // of all but the last, which may have fewer

  int64_t blocks() const { return row_tiles * token_tiles * splits; }
};

// The cheapest tile and split by a model of the device: what its processors and its memory need.
// `tile`: only this one, -1 any. A pure function.
NmPlan nm_plan(int64_t tokens, int64_t rows, int64_t columns, int value_bytes, int processors,
               int tile = -1);

}  // namespace evoprune::cuda
