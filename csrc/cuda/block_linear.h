// The products with a weight of kept blocks on the device.
//
//   block_linear      block_linear.cu      y  = act(x W^T + b)
//   block_linear_dx   block_linear_dx.cu   dX = dY W           the same kernel, blocks transposed
//   block_linear_dw   block_linear_dw.cu   dW = dY^T x         on the kept blocks only
#pragma once

#include "cuda/epilogue.h"

namespace evoprune::cuda {

// The words are those of block_linear. For dX read: x is dY, y is dX, outputs are columns of the
// weight, inputs its rows, row_ptr and col_idx are those of the transposed index, `order` says
// where a block of that index is kept.
struct BlockProductArgs {
  const void* x;           // [tokens, inputs], rows aligned to 16 bytes
  const void* values;      // [nnz, edge_out, edge_in]; dX: [nnz, edge_in, edge_out]
  const int32_t* row_ptr;  // [ceil(outputs / edge_out) + 1]
  const int32_t* col_idx;  // [nnz]
  const int32_t* order;    // dX: [nnz]; otherwise null
  void* y;                 // [tokens, outputs]
  DType dtype;
  int64_t tokens, outputs, inputs;
  int processors;                       // of the device
  int edge_out, edge_in, edge_in_bits;  // edge_in = 1 << edge_in_bits
  Epilogue epilogue;
};

struct BlockGradArgs {
  const void* grad;        // [tokens, outputs], rows aligned to 16 bytes
  const void* x;           // [tokens, inputs], rows aligned to 16 bytes
  const int32_t* row_idx;  // [nnz] the block row of every block
  const int32_t* col_idx;  // [nnz]
  void* values;            // [nnz, edge_out, edge_in], written
  DType dtype;
  int64_t tokens, outputs, inputs, count;
  int edge_out, edge_in;
};

// What a thread block computes, how its warps share it, and how deep its pipeline is. Warps over
// inputs (dW: over tokens) are pipelines of their own, whose sums are added at the end.
struct BlockTile {
  int tokens, outputs;
  int warps_tokens, warps_outputs, warps_inputs;
  int stages;
};
inline constexpr BlockTile kBlockTiles[] = {
    {16, 16, 1, 1, 4, 3},    // few tokens: the weight streams by once
    {128, 16, 4, 1, 1, 4},   //
    {128, 32, 4, 1, 1, 4},   //
    {128, 64, 4, 1, 1, 3},   // two thread blocks fit an SM
    {128, 128, 4, 2, 1, 3},  //
};
inline constexpr int kBlockFewTokens = 16;

// The widest tile whose outputs divide the block's, or half or a quarter of that (of 32 outputs or
// more) where it would leave processors without work. `few`: whether the tile for few tokens exists.
constexpr int choose_block_tile(int edge_out, int64_t tokens, int64_t outputs, int processors,
                                bool few) {
  if (few && tokens <= kBlockFewTokens) return 0;
  int tile = edge_out >= 128 ? 4 : edge_out >= 64 ? 3 : edge_out >= 32 ? 2 : 1;
  while (tile > 2 &&
         ceil_div(tokens, kBlockTiles[tile].tokens) * ceil_div(outputs, kBlockTiles[tile].outputs) <
             processors)
    --tile;
  return tile;
}

struct BlockGradTile {
  int edge;  // outputs and inputs
  int warps_outputs, warps_inputs, warps_tokens;
  int stages;
};
inline constexpr BlockGradTile kBlockGradTiles[] = {
    {16, 1, 1, 4, 3},
    {32, 1, 1, 4, 3},
    {64, 2, 2, 1, 4},
    {128, 4, 2, 1, 3},
};

// The widest tile that divides both edges.
constexpr int choose_block_grad_tile(int edge_out, int edge_in) {
  const int edge = edge_out < edge_in ? edge_out : edge_in;
  return edge >= 128 ? 3 : edge >= 64 ? 2 : edge >= 32 ? 1 : 0;
}

// Into how many parts the tokens of dW are split, so that few kept blocks keep all processors busy.
//
// Time is counted in rounds, one step of every pipeline of a thread block, and is that of the
// processor with the most thread blocks, one after another:
//
//   blocks of a processor * (rounds of a part + kBlockRounds)
//     + where there are parts: kAddRounds + parts / kAddedInRound
//
// kBlockRounds are the first copies and the last stores of a block; kAddRounds is the second
// kernel, which has several parts on their way at a time.
//
// In bytes: the sums of a part, 4 E^2 of a tile with edge E, are written and read once. A part has
// kLeastRounds or more, so it reads 2048 E bytes of dY and x or more (four times that where a block
// has four pipelines, edges of 16 and 32). So the parts add half of what is read anyway at most for
// edges of 128, a quarter for 64, 3 % for 32 and 2 % for 16. A processor gets kMostTiles of them at
// most, for more could only level the last turn: a workspace of up to 256 KiB a processor.
struct BlockGradSplit {
  int64_t splits;
  int64_t tokens;  // of a part, whole rounds; the last may have fewer
};
inline constexpr int64_t kBlockRounds = 4, kAddRounds = 8, kAddedInRound = 4;
inline constexpr int64_t kLeastRounds = 8, kMostTiles = 4;

// `tiles` of all kept blocks; a round has `round` tokens. A pure function.
constexpr BlockGradSplit split_block_grad(int64_t tiles, int64_t tokens, int64_t round,
                                          int processors) {
  const int64_t rounds = ceil_div(tokens, round);
  const auto time = [&](int64_t splits) {
    return ceil_div(tiles * splits, processors) * (ceil_div(rounds, splits) + kBlockRounds) +
           (splits > 1 ? kAddRounds + splits / kAddedInRound : 0);
  };
  int64_t best = 1;
  for (int64_t splits = 2;
       rounds / splits >= kLeastRounds && tiles * splits <= kMostTiles * processors; ++splits)
    if (time(splits) < time(best)) best = splits;
  const int64_t of_part = ceil_div(rounds, best);
  return {best == 1 ? 1 : ceil_div(rounds, of_part), of_part * round};
}

constexpr bool is_block_edge(int64_t edge) {
  return edge == 16 || edge == 32 || edge == 64 || edge == 128;
}

void block_linear(const BlockProductArgs& args, cudaStream_t stream);
void block_linear_dx(const BlockProductArgs& args, cudaStream_t stream);
// Bytes of scratch memory that block_linear_dw needs, for split sums.
int64_t block_linear_dw_workspace(const BlockGradArgs& args, const DeviceLimits& limits);
void block_linear_dw(const BlockGradArgs& args, const DeviceLimits& limits, void* workspace,
                     cudaStream_t stream);

}  // namespace evoprune::cuda
