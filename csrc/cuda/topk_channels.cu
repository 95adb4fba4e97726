// topk_channels: the indices of the k highest scores of a row, ascending.
//
//   indices[r, :] = { c : rank of scores[r, c] in its row < k }
//
//   scores  [rows, channels]   row r = block r
//   keys    | warp 0: 32 n channels | warp 1 | .. |     shared memory, one word a channel; the
//              lane l: l, l + 32, ..                     first 8 of a lane in registers too
//   write   |  above, tied to the left -> position |    a warp keeps the order of its channels
//
// A key is a word that orders like its score: -0.0 as +0.0, NaN below -inf. The k-th highest key is
// built bit by bit from the top: a bit is set when k keys or more are at least that high. Each bit
// is a comparison a key, a sum over each warp and one barrier; bits in which all keys agree, such as
// those that a 16-bit score does not have, are not tried. Then every key above it is kept, and of
// those equal to it the first ones.
//
// Bound by the instructions and barriers of up to 32 steps of one processor: memory is read once. Counts of integers: exact, deterministic. Ties: the lowest index wins, as in
// ops/_rank.py.
#include "cuda/launch.cuh"
#include "cuda/topk_channels.h"
#include "cuda/types.cuh"

namespace evoprune::cuda {

namespace {

constexpr int kMostWarps = 32;
constexpr int kOfLane = 8;  // keys of a lane in registers
constexpr unsigned kAll = 0xffffffffu;

__device__ __forceinline__ uint32_t ordered_key(float score) {
  if (score != score) return 0;
  const uint32_t bits = __float_as_uint(score + 0.0f);
  return bits >> 31 ? ~bits : bits | 0x80000000u;
}

// The sum of every warp's `count`, for all; `buffer` may be used again after another barrier.
__device__ __forceinline__ int sum_of_block(int count, int (&buffer)[kMostWarps]) {
  const int lane = threadIdx.x % 32, warps = blockDim.x / 32;
  count = __reduce_add_sync(kAll, count);
  if (lane == 0) buffer[threadIdx.x / 32] = count;
  __syncthreads();
  return __reduce_add_sync(kAll, lane < warps ? buffer[lane] : 0);
}

// The sum of the counts of the warps before this one.
__device__ __forceinline__ int sum_before(const int (&buffer)[kMostWarps]) {
  const int lane = threadIdx.x % 32, warp = threadIdx.x / 32;
  return __reduce_add_sync(kAll, lane < warp ? buffer[lane] : 0);
}

// The bits in which some keys differ, and through `agreed` the value of the others.
__device__ __forceinline__ uint32_t differing_bits(const uint32_t* keys, int first, int last,
                                                   uint32_t (&masks)[2][kMostWarps],
                                                   uint32_t& agreed) {
  const int lane = threadIdx.x % 32, warps = blockDim.x / 32;
  uint32_t in_all = kAll, in_any = 0;
  for (int c = first; c < last; c += 32) {
    in_all &= keys[c];
    in_any |= keys[c];
  }
  masks[0][threadIdx.x / 32] = __reduce_and_sync(kAll, in_all);
  masks[1][threadIdx.x / 32] = __reduce_or_sync(kAll, in_any);
  __syncthreads();
  in_all = __reduce_and_sync(kAll, lane < warps ? masks[0][lane] : kAll);
  in_any = __reduce_or_sync(kAll, lane < warps ? masks[1][lane] : 0);
  agreed = in_all;
  return in_all ^ in_any;
}

// The highest key that k of the keys or more reach. Ends with a barrier.
__device__ __forceinline__ uint32_t kth_highest(const uint32_t* keys, int first, int last, int k,
                                                int (&counts)[2][kMostWarps],
                                                uint32_t (&masks)[2][kMostWarps]) {
  uint32_t mine[kOfLane];  // 0, what no candidate is, where there is none
#pragma unroll
  for (int i = 0; i < kOfLane; ++i) mine[i] = first + 32 * i < last ? keys[first + 32 * i] : 0;
  uint32_t threshold, differing = differing_bits(keys, first, last, masks, threshold);
  for (int turn = 0; differing != 0; turn ^= 1) {
    const uint32_t bit = 0x80000000u >> __clz(differing);
    differing ^= bit;
    const uint32_t candidate = threshold | bit;
    int count = 0;
#pragma unroll
    for (int i = 0; i < kOfLane; ++i) count += mine[i] >= candidate;
    for (int c = first + 32 * kOfLane; c < last; c += 32) count += keys[c] >= candidate;
    if (sum_of_block(count, counts[turn]) >= k) threshold = candidate;
  }
  __syncthreads();
  return threshold;
}

}  // namespace

template <typename T>
__global__ void __launch_bounds__(32 * kMostWarps) topk_channels_kernel(TopkChannelsArgs args) {
  extern __shared__ uint32_t keys[];
  __shared__ int counts[2][kMostWarps];
  __shared__ uint32_t masks[2][kMostWarps];
  const int lane = threadIdx.x % 32, warp = threadIdx.x / 32, warps = blockDim.x / 32;
  const int of_warp = (args.channels + 32 * warps - 1) / (32 * warps) * 32;
  const int first = warp * of_warp + lane, last = min((warp + 1) * of_warp, args.channels);
  const T* scores = static_cast<const T*>(args.scores) + blockIdx.x * int64_t{args.channels};
  int64_t* indices = args.indices + blockIdx.x * int64_t{args.k};
  for (int c = first; c < last; c += 32) keys[c] = ordered_key(to_float(scores[c]));
  const uint32_t threshold = kth_highest(keys, first, last, args.k, counts, masks);

  int above = 0, tied = 0;
  for (int c = first; c < last; c += 32) {
    above += keys[c] > threshold;
    tied += keys[c] == threshold;
  }
  const int room = args.k - sum_of_block(above, counts[0]);  // for keys equal to the threshold
  sum_of_block(tied, counts[1]);
  above = sum_before(counts[0]);
  tied = sum_before(counts[1]);
  for (int c = first; c - lane < last; c += 32) {
    const bool inside = c < last;
    const unsigned higher = __ballot_sync(kAll, inside && keys[c] > threshold);
    const unsigned equal = __ballot_sync(kAll, inside && keys[c] == threshold);
    const unsigned before = (1u << lane) - 1;
    const int tied_here = tied + __popc(equal & before);
    const bool kept = higher >> lane & 1 || (equal >> lane & 1 && tied_here < room);
    if (kept) indices[above + __popc(higher & before) + min(tied_here, room)] = c;
    above += __popc(higher);
    tied += __popc(equal);
  }
}

int64_t topk_channels_most(const DeviceLimits& limits) {
  constexpr int kStatic = 1024;  // counts, with room to spare
  return (limits.shared_bytes - kStatic) / 4;
}

void topk_channels(const TopkChannelsArgs& args, cudaStream_t stream) {
  if (args.rows == 0 || args.k == 0) return;
  int warps = 1;
  while (warps < kMostWarps && warps * 32 * kOfLane < args.channels) warps *= 2;
  const dim3 grid(static_cast<unsigned>(args.rows));
  const auto kernel = args.dtype == DType::f32   ? topk_channels_kernel<float>
                      : args.dtype == DType::f16 ? topk_channels_kernel<__half>
                                                 : topk_channels_kernel<__nv_bfloat16>;
  launch(kernel, grid, 32 * warps, args.channels * 4, stream, args);
}

}  // namespace evoprune::cuda
