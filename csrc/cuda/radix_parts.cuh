// What the kernels of the radix select share: their arguments, what a block owns, sums in order.
#pragma once

#include <cstdint>

#include "cuda/radix_select.h"
#include "cuda/selection.cuh"

namespace evoprune::cuda::radix {

inline constexpr int kThreads = 256, kWarps = kThreads / 32, kVectors = 4;
inline constexpr int kMaxBins = 2048, kTensors = 64, kBlocksPerProcessor = 6;
inline constexpr int64_t kAllTies = -1;

template <typename Word>
inline constexpr int kBits = 8 * static_cast<int>(sizeof(Word));
template <typename Word>
inline constexpr int kPasses = (kBits<Word> + 10) / 11;
template <typename Word>
inline constexpr int kDigit = (kBits<Word> + kPasses<Word> - 1) / kPasses<Word>;
template <typename Word>
inline constexpr int kLastDigit = kBits<Word> - (kPasses<Word> - 1) * kDigit<Word>;
template <typename Word>
inline constexpr int kTile = kThreads * kVectors * kPer16Bytes<Word>;

// Up to kTensors of the list, and the blocks of this launch that each has.
struct Table {
  const void* scores[kTensors];
  uint8_t* mask[kTensors];
  int64_t size[kTensors];
  int32_t first_block[kTensors];  // tensors that the table does not have: beyond the grid
};

// Scratch memory; all but own and quota starts as zeros.
struct Scratch {
  uint64_t* totals;    // [kMaxBins] of the pass
  uint64_t* found;     // {digits of the threshold so far, how many are to be kept of what matches}
  uint32_t* finished;  // of the pass: blocks that have added their counts
  uint32_t* own;       // [blocks, bins of the last pass]
  int64_t* quota;      // [blocks]: how many of its ties a block keeps, or kAllTies
};

template <typename Word>
struct Args {
  Table table;
  Scratch scratch;
  int64_t chunk, first_block, blocks, keep;  // first_block: of this launch; blocks: of all
  Word infinity;
  int shift, bits;  // of the digit
  bool first, last;
};

// What the block owns: scores [0, size) at `scores`.
template <typename Word>
struct Chunk {
  const Word* scores;
  uint8_t* mask;
  int64_t size;
  bool aligned;
};

template <typename Word>
__device__ __forceinline__ Chunk<Word> own_chunk(const Args<Word>& args) {
  const int block = static_cast<int>(blockIdx.x);
  int tensor = 0;
#pragma unroll
  for (int step = kTensors / 2; step > 0; step /= 2)
    if (args.table.first_block[tensor + step] <= block) tensor += step;
  const int64_t start = (block - args.table.first_block[tensor]) * args.chunk;
  const int64_t left = args.table.size[tensor] - start;
  const Word* scores = static_cast<const Word*>(args.table.scores[tensor]) + start;
  return {scores, args.table.mask[tensor] + start, left < args.chunk ? left : args.chunk,
          reinterpret_cast<uintptr_t>(scores) % 16 == 0};
}

// Sum of `value` over the threads before this one, and over all in `total`. Every thread calls.
__device__ __forceinline__ int64_t sum_before(int64_t value, int64_t& total) {
  __shared__ int64_t warps[kWarps];
  const int lane = threadIdx.x % 32, warp = threadIdx.x / 32;
  int64_t inclusive = value;
#pragma unroll
  for (int step = 1; step < 32; step *= 2) {
    const int64_t other = __shfl_up_sync(0xffffffffu, inclusive, step);
    if (lane >= step) inclusive += other;
  }
  __syncthreads();
  if (lane == 31) warps[warp] = inclusive;
  __syncthreads();
  int64_t before = inclusive - value;
  total = 0;
#pragma unroll
  for (int w = 0; w < kWarps; ++w) {
    if (w < warp) before += warps[w];
    total += warps[w];
  }
  return before;
}

// ---- host ----
inline constexpr int64_t kHeadWords = kMaxBins + 2 + 4;  // of scratch: what starts as zeros

template <typename Word>
RadixPlan plan(const RadixSelectArgs& args, const DeviceLimits& limits) {
  int64_t tiles = 0;
  for (int64_t i = 0; i < args.count; ++i) tiles += ceil_div(args.tensors[i].size, kTile<Word>);
  const int64_t most = static_cast<int64_t>(limits.processors) * kBlocksPerProcessor;
  const int64_t chunk = kTile<Word> * (tiles > most ? ceil_div(tiles, most) : 1);
  int64_t blocks = 0;
  for (int64_t i = 0; i < args.count; ++i) blocks += ceil_div(args.tensors[i].size, chunk);
  const int64_t a_block = sizeof(int64_t) + (sizeof(uint32_t) << kLastDigit<Word>);
  return {chunk, blocks, kHeadWords * static_cast<int64_t>(sizeof(uint64_t)) + blocks * a_block};
}

}  // namespace evoprune::cuda::radix
