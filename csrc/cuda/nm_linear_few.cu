// nm_linear_few: a 2:4 linear layer for few tokens, which streams the weight once.
//
//   y[m, n] = act(scale[n] * sum over the kept k of w[n, k] x[m, k] + bias[n])
//
//   weight, layout "cuda" (core/nm_cuda_layout.h): a tile of 64 x 64 is 4 rows of a lane, and of
//   each row kSteps pieces of 16 bytes, whose 2-bit indices are in the lane's 16 bytes of meta.
//   A piece covers kRun = 32 / sizeof(value) columns; lanes in pairs, of `half` 0 and 1, hold
//   neighbouring pieces, so that a request of a warp is 16 rows x 32 bytes, whole sectors:
//
//     values of a row   | half 0  half 1 | half 0  half 1 | ..     each 16 bytes
//                         step 0           step 1
//     half    t % 2, for int8 t / 2                 (lane = 4 g + t)
//     row a   16 (2 (a / 2) + t / 2) + g + 8 (a % 2), for int8 16 a + g + 8 (t % 2)
//
//   x in shared memory, kChunk columns at a time, as in few_tokens.cuh. The lanes of a quad read from
//   two runs of columns; no load of x has a bank conflict, whatever the indices are.
//
// Block: 64 rows (32 where that leaves multiprocessors idle) and up to kTokens tokens. Warp w takes
// the tiles w, w + warps, .. along K; the pieces of its next tile are on their way while it
// multiplies. Then the pair of a lane, then the warps are summed up, in a fixed order.
// Bound by memory: values and meta are read once (where blocks take 32 rows, meta twice, the second
// time from L2). Instructions for a value: 2 for its address, 1 to make it float, and for up to 8
// tokens one load and a conversion and a multiplication each. Tokens beyond kFewTokens (float: 8, to
// have registers for the sums) are for blocks of their own, next to each other in the grid, so that
// the weight comes from L2.
// Sums in float, in the order of K within a lane; deterministic. A stored place takes part with
// NaN and infinity of both sides, any other does not. x beyond K and beyond the last token counts
// as 0.
// Source: "PTX ISA", 9.7.14.6, for the order of meta; the way through it is this package's own.
#include "core/nm_cuda_layout.h"
#include "cuda/epilogue.cuh"
#include "cuda/few_tokens.cuh"
#include "cuda/launch.cuh"
#include "cuda/nm_linear.h"
#include "cuda/ptx.cuh"

namespace evoprune::cuda {

namespace few {

constexpr int kMaxWarps = 16, kTile = kNmCudaTile;
constexpr int kChunkBytes = 32 * 1024;  // of x in shared memory

struct Plan {
  int parts;   // blocks that share 64 rows: 1 or 2
  int chunks;  // blocks along the tokens
  int warps;
};

// What a block computes.
struct Part {
  int64_t strip, token;  // which 64 rows, the first token
  int part, parts, tokens;

  __device__ Part(const NmLinearArgs& args, const Plan& plan, int most_tokens) {
    const int64_t group = blockIdx.x / plan.chunks;
    strip = group / plan.parts;
    part = static_cast<int>(group % plan.parts);
    parts = plan.parts;
    token = static_cast<int64_t>(blockIdx.x % plan.chunks) * most_tokens;
    const int64_t left = args.tokens - token;
    tokens = left < most_tokens ? static_cast<int>(left) : most_tokens;
  }
  // Whether the block has row a of a lane.
  __device__ __forceinline__ bool has(int a) const { return parts == 1 || a / 2 == part; }
};

template <typename T, typename S, int kTokensOfBlock>
struct Config : Tokens<T, kTokensOfBlock, kChunkBytes> {
  using Tokens<T, kTokensOfBlock, kChunkBytes>::kTokens;
  static constexpr int kRun = 32 / static_cast<int>(sizeof(S));  // columns of a piece
  static constexpr int kSteps = kTile / (2 * kRun);
  // steps whose pieces are in registers: as many as fit beside 4 kTokens sums
  static constexpr int kHeld = kSteps == 1 || kTokens == 16 || (kSteps == 4 && kTokens > 1) ? 1 : 2;
  // for 16 tokens arithmetic hides the wait for meta, and its registers are needed for the sums
  static constexpr bool kMetaAhead = kTokens < 16;
  static constexpr bool kBytes = sizeof(S) == 1;
  static constexpr int kPair = kBytes ? 2 : 1;  // lane ^ kPair has the other half of the columns
  static __device__ __forceinline__ int row_of(int a) {
    return kBytes ? 16 * a : a / 2 * 32 + a % 2 * 8;
  }
};

// What a lane needs to find its part of a tile.
template <typename S, typename C>
struct Lane {
  const char* values;  // of the lane's row 0 in tile 0
  int64_t row_bytes;
  const uint4* meta;  // of tile 0
  int row, half;

  __device__ Lane(const NmLinearArgs& args, int64_t strip) {
    const int lane = threadIdx.x % 32, g = lane / 4, t = lane % 4;
    half = C::kBytes ? t / 2 : t % 2;
    row = C::kBytes ? g + 8 * (t % 2) : g + 16 * (t / 2);
    const int64_t columns64 = nm_cuda_padded(args.columns);
    row_bytes = columns64 / 2 * static_cast<int>(sizeof(S));
    values = static_cast<const char*>(args.values) + (strip * kTile + row) * row_bytes + half * 16;
    meta = reinterpret_cast<const uint4*>(args.meta) + strip * (columns64 / kTile) * 32 + lane;
  }
  __device__ __forceinline__ uint4 piece(int64_t tile, int step, int a) const {
    constexpr int kTileBytes = kTile / 2 * static_cast<int>(sizeof(S));
    return ptx::load_once(values + C::row_of(a) * row_bytes + tile * kTileBytes + step * 32);
  }
  __device__ __forceinline__ uint4 meta_of(int64_t tile) const {
    return ptx::load_once(meta + tile * 32);
  }
};

// float: a lane loads the same half of two steps where meta has both halves of one. Lanes swap the
// bytes of 8 columns: afterwards a word has, low to high, row g steps 0 and 1, row g + 8 the same.
template <typename C>
__device__ __forceinline__ uint4 by_step(uint4 meta, int half) {
  if constexpr (C::kSteps == 4) {
    const uint32_t selector = half ? 0x3715u : 0x6240u;
    const auto swap = [&](uint32_t word) {
      return __byte_perm(word, __shfl_xor_sync(0xffffffffu, word, C::kPair), selector);
    };
    return {swap(meta.x), swap(meta.y), swap(meta.z), swap(meta.w)};
  }
  return meta;
}

// Where x of a lane's columns begins in shared memory: of its even and its odd groups of 4.
struct Columns {
  const char* shared;
  uint32_t even, odd;
};

// acc += a piece of a tile; its indices are the bits of `word` from first_bit on.
template <typename T, typename S, typename C>
__device__ __forceinline__ void multiply(float (&acc)[C::kTokens], uint4 piece, uint32_t word,
                                         int first_bit, int step, const Columns& from) {
  const uint32_t w[4] = {piece.x, piece.y, piece.z, piece.w};
#pragma unroll
  for (int i = 0; i < C::kRun / 2; ++i) {
    const int group = i / 2, bit = first_bit + 2 * i;
    const uint32_t at = ((word >> bit & 3) * C::kSlot) | (group % 2 ? from.odd : from.even);
    const int fixed = (step * 2 * C::kRun + group * 4) * C::kSlot;
    const float value = stored(w, i, S{});
#pragma unroll
    for (int plane = 0; plane < C::kPlanes; ++plane) {
      const char* slot = from.shared + at + (fixed + plane * C::kPlane);
      const auto x = *reinterpret_cast<const Vector<T, C::kVector>*>(slot);
#pragma unroll
      for (int v = 0; v < C::kVector; ++v) {
        float& sum = acc[plane * C::kVector + v];
        sum = fmaf(value, to_float(x.at[v]), sum);
      }
    }
  }
}

// Sums of the warps -> y. Shared memory: float [warps][tokens][rows of the block].
template <typename T, typename C>
__device__ __forceinline__ void finish(const float (&acc)[4][C::kTokens], float* sums,
                                       const NmLinearArgs& args, const Part& part, int lane_row,
                                       bool writes) {
  const int tokens = part.tokens, rows = kTile / part.parts;
  const int warps = blockDim.x / 32, warp = threadIdx.x / 32;
#pragma unroll
  for (int a = 0; a < 4; ++a) {
    if (!part.has(a)) continue;
    const int row = (lane_row + C::row_of(a)) % rows;
#pragma unroll
    for (int m = 0; m < C::kTokens; ++m) {
      if (m >= tokens) break;
      const float sum = acc[a][m] + __shfl_xor_sync(0xffffffffu, acc[a][m], C::kPair);
      if (writes) sums[(warp * tokens + m) * rows + row] = sum;
    }
  }
  __syncthreads();
  for (int i = threadIdx.x; i < rows * tokens; i += blockDim.x) {
    const int64_t n = part.strip * kTile + part.part * rows + i % rows;
    if (n >= args.rows) continue;
    float sum = 0.0f;
    for (int w = 0; w < warps; ++w) sum += sums[w * rows * tokens + i];
    const Epilogue& e = args.epilogue;
    const float z = activate(fmaf(sum, scale_at(e, n), bias_at(e, n)), e.activation);
    static_cast<T*>(args.y)[(part.token + i / rows) * args.rows + n] = from_float<T>(z);
  }
}

}  // namespace few

template <typename T, typename S, int kTokens>
__global__ void __launch_bounds__(32 * few::kMaxWarps, 1)
    nm_linear_few_kernel(NmLinearArgs args, few::Plan plan) {
  using C = few::Config<T, S, kTokens>;
  extern __shared__ __align__(128) char shared[];
  const few::Part part(args, plan, kTokens);
  const int warp = threadIdx.x / 32, warps = blockDim.x / 32;
  const int tiles = static_cast<int>(nm_cuda_padded(args.columns) / few::kTile);
  const few::Lane<S, C> lane(args, part.strip);

  // the pieces of the first tile are on their way while x is staged
  uint4 piece[C::kHeld][4], next_meta{};
#pragma unroll
  for (int i = 0; i < 4 * C::kHeld; ++i)
    if (warp < tiles && part.has(i % 4)) piece[i / 4][i % 4] = lane.piece(warp, i / 4, i % 4);
  if (C::kMetaAhead && warp < tiles) next_meta = lane.meta_of(warp);

  float acc[4][kTokens] = {};
  const int stride = C::kChunk / few::kTile / warps * warps;  // tiles of a chunk, the same a warp
  for (int begin = 0; begin < tiles; begin += stride) {
    const int count = tiles - begin < stride ? tiles - begin : stride;
    if (begin != 0) __syncthreads();
    few::stage<T, C, C::kRun>(shared, static_cast<const T*>(args.x), args.columns, part.token,
                              part.tokens, int64_t{begin} * few::kTile, count * few::kTile);
    __syncthreads();
    for (int local = warp; local < count; local += warps) {
      const int tile = begin + local, next = tile + warps;
      const bool more = next < tiles;
      const uint4 read = C::kMetaAhead ? next_meta : lane.meta_of(tile);
      const uint4 meta = few::by_step<C>(read, lane.half);
      if (C::kMetaAhead && more) next_meta = lane.meta_of(next);
      const uint32_t words[4] = {meta.x, meta.y, meta.z, meta.w};
      const uint32_t start = (local * few::kTile + lane.half * C::kRun) * C::kSlot;
      const uint32_t swap = 4 * C::kSlot * lane.half;
      const few::Columns from{shared, start + swap, start - swap};
#pragma unroll
      for (int i = 0; i < 4 * C::kSteps; ++i) {
        const int step = i / 4, a = i % 4, held = step % C::kHeld;
        if (!part.has(a)) continue;
        const uint4 now = piece[held][a];
        if (step + C::kHeld < C::kSteps)
          piece[held][a] = lane.piece(tile, step + C::kHeld, a);
        else if (more)
          piece[held][a] = lane.piece(next, held, a);
        const int word = C::kBytes ? a : a / 2 + 2 * (step * C::kRun / 16);
        const int bit = C::kBytes ? 0 : 16 * (a % 2) + step * C::kRun % 16;
        few::multiply<T, S, C>(acc[a], now, words[word], bit, step, from);
      }
    }
  }
  __syncthreads();
  few::finish<T, C>(acc, reinterpret_cast<float*>(shared), args, part, lane.row, lane.half == 0);
}

namespace few {

template <typename T, typename S, int kTokens>
void run(const NmLinearArgs& args, const DeviceLimits& limits, cudaStream_t stream) {
  using C = Config<T, S, kTokens>;
  const int64_t strips = ceil_div(args.rows, kTile), tiles = ceil_div(args.columns, kTile);
  Plan plan{1, static_cast<int>(ceil_div(args.tokens, kTokens)), kMaxWarps / 2};
  if (strips * plan.chunks < 2 * limits.processors) plan.parts = 2;
  const int64_t blocks = strips * plan.parts * plan.chunks;
  if (blocks < limits.processors) plan.warps = kMaxWarps;
  if (tiles < plan.warps) plan.warps = tiles > 0 ? static_cast<int>(tiles) : 1;

  const int tokens = args.tokens < kTokens ? static_cast<int>(args.tokens) : kTokens;
  const int64_t columns = tiles * kTile < C::kChunk ? tiles * kTile : C::kChunk;
  const int x = (C::kPlanes - 1) * C::kPlane + static_cast<int>(columns) * C::kSlot;
  const int sums = plan.warps * tokens * (kTile / plan.parts) * static_cast<int>(sizeof(float));
  launch(nm_linear_few_kernel<T, S, kTokens>, dim3(static_cast<unsigned>(blocks)), 32 * plan.warps,
         x > sums ? x : sums, stream, args, plan);
}

}  // namespace few

void nm_linear_few(const NmLinearArgs& args, const DeviceLimits& limits, cudaStream_t stream) {
  if (args.rows == 0 || args.tokens == 0) return;
  few::with_types(args.dtype, args.stored, [&](auto x, auto value) {
    using T = decltype(x);
    using S = decltype(value);
    few::with_tokens<T>(args.tokens, [&](auto tokens) {
      few::run<T, S, decltype(tokens)::value>(args, limits, stream);
    });
  });
}

}  // namespace evoprune::cuda
