// The kernel of a product with a 2:4 weight on the tensor cores; drawn in nm_linear.cu.
#pragma once

#include "cuda/nm_linear_load.cuh"
#include "cuda/nm_linear_store.cuh"
#include "cuda/types.cuh"

namespace evoprune::cuda {

template <typename T>
struct NmSumOf {
  using Type = float;
};
template <>
struct NmSumOf<int8_t> {
  using Type = int32_t;
};

// Where a lane of a warp reads in a stage.
struct NmLane {
  uint32_t a, b, meta;  // offsets of its ldmatrix rows, at the warp's first step, and its words
};

template <typename Tile>
struct NmWarp {
  static constexpr NmTileShape kShape = Tile::kShape;
  static constexpr int kTokens = kShape.warp_tokens, kParts = kShape.warps_k;
  static constexpr int kAcross = Tile::kTokens / kTokens;
  // metadata for the two steps of a warp: tiles of 64 columns
  static constexpr int kMetaTiles = Tile::kMetaTiles / kParts;

  int row, token, part;  // in units of a warp

  __device__ __forceinline__ NmWarp() {
    const int warp = threadIdx.x / 32;
    part = warp % kParts;
    token = warp / kParts % kAcross;
    row = warp / (kParts * kAcross);
  }
  __device__ __forceinline__ NmLane lane() const {
    const int lane = threadIdx.x % 32, matrix = lane / 8, r = lane % 8;
    NmLane at;
    at.a = swizzled<Tile::kARow>(64 * row + matrix % 2 * 8 + r, 4 * part + matrix / 2);
    at.b = Tile::kB + swizzled<Tile::kBRow>(kTokens * token + r, 8 * part + matrix);
    at.meta = Tile::kMeta + ((row * kParts + part) * kMetaTiles * 32 + lane) * 16;
    return {ptx::kept(at.a), ptx::kept(at.b), ptx::kept(at.meta)};
  }
};

// d += W x^T over the two steps of a stage that are this warp's. A step of 64 rows x kTokens8 * 8
// tokens: 4 ldmatrix of W, all of them before its first mma, and one of x for every 8 tokens, each
// two times four mma ahead of those that need it. `meanwhile` is what there is to do while the first
// of them are under way.
template <typename T, typename Tile, typename Sum, int kTokens8, typename F>
__device__ __forceinline__ void nm_multiply(Sum (&d)[4][kTokens8][4], uint32_t stage,
                                            const NmLane& at, const F& meanwhile) {
  constexpr int kTiles = NmWarp<Tile>::kMetaTiles, kAhead = kTokens8 < 4 ? kTokens8 : 4;
  const uint32_t a_at[2] = {stage + at.a,
                            (stage + at.a) ^ 32};  // chunk + 2 and chunk + 4, swizzled
  const uint32_t b_at[2] = {stage + at.b, (stage + at.b) ^ 64};
  uint32_t meta[4 * kTiles], a[2][4][4], b[3][4];
  unrolled<kTiles>(
      [&](auto i) { ptx::load_shared16<i.value * 512>(meta + 4 * i.value, stage + at.meta); });
  unrolled<4>(
      [&](auto m) { ptx::ldmatrix_x4<m.value * 16 * Tile::kARow>(a[0][m.value], a_at[0]); });
  ptx::ldmatrix_x4(b[0], b_at[0]);
  ptx::ldmatrix_x4<8 * Tile::kBRow>(b[1], b_at[0]);
  meanwhile();
  unrolled<2 * kTokens8>([&](auto i) {
    constexpr int step = i.value / kTokens8, j = i.value % kTokens8, after = i.value + 2;
    if constexpr (after < 2 * kTokens8)
      ptx::ldmatrix_x4<after % kTokens8 * 8 * Tile::kBRow>(b[after % 3], b_at[after / kTokens8]);
    unrolled<4>([&](auto m) {
      if constexpr (step == 0 && m.value % kAhead == j)
        ptx::ldmatrix_x4<m.value * 16 * Tile::kARow>(a[1][m.value], a_at[1]);
    });
    unrolled<4>([&](auto m) {
      if constexpr (sizeof(T) == 1)
        ptx::mma_sp_m16n8k64_s8(d[m.value][j], a[step][m.value], b[i.value % 3],
                                meta[4 * step + m.value]);
      else
        ptx::mma_sp_m16n8k32<m.value % 2>(d[m.value][j], a[step][m.value], b[i.value % 3],
                                          meta[2 * step + m.value / 2], T{});
    });
  });
}

template <typename T, int kIndex>
__global__ void __launch_bounds__(kNmTiles[kIndex].threads(), kNmTiles[kIndex].blocks)
    nm_linear_kernel(const NmWork work, const NmOutput out) {
  using Tile = NmTile<T, kIndex>;
  using Warp = NmWarp<Tile>;
  using Sum = typename NmSumOf<T>::Type;
  constexpr int kAhead = Tile::kStages - 1;
  extern __shared__ __align__(128) char shared[];
  const uint32_t first = ptx::shared_address(shared);
  const uint32_t last = first + kAhead * Tile::kStageBytes;
  const NmPlace place = nm_place(work.plan, Tile::kRows, Tile::kTokens);
  NmLoader<T, Tile> load(work, place);
  const Warp warp;
  const NmLane lane = warp.lane();

#pragma unroll
  for (int s = 0; s < kAhead; ++s) {
    if (s < place.stages) load.next(first + s * Tile::kStageBytes);
    ptx::cp_async_commit();
  }
  Sum d[4][Warp::kTokens / 8][4] = {};
  uint32_t from = first, to = last;
  const int stages = static_cast<int>(place.stages);
#pragma unroll 1
  for (int s = 0; s < stages; ++s) {
    ptx::cp_async_wait<kAhead - 1>();
    __syncthreads();  // this stage is there, and all warps are done with the one before it
    nm_multiply<T, Tile>(d, from, lane, [&] {
      if (s + kAhead < stages) load.next(to);
      ptx::cp_async_commit();
    });
    to = from;
    from = from == last ? first : from + Tile::kStageBytes;
  }

  __syncthreads();
  constexpr int kRegion = Warp::kTokens * kStagedToken;
  Sum* region = reinterpret_cast<Sum*>(shared) +
                (warp.row * Warp::kAcross + warp.token) * Warp::kParts * kRegion;
  stage_sums(region + warp.part * kRegion, d);
  if constexpr (Warp::kParts == 1)
    __syncwarp();
  else
    __syncthreads();
  constexpr int kCount = Warp::kTokens / Warp::kParts;
  const int begin = warp.part * kCount;
  const int64_t token = place.token + warp.token * Warp::kTokens + begin;
  const int64_t left = out.tokens - token;
  const NmWarpPlace mine{place.row + 64 * warp.row, token, place.split, begin,
                         left < kCount ? static_cast<int>(left) : kCount};
  if (out.parts != nullptr)
    store_part<Warp::kParts>(region, kRegion, mine, out);
  else if (stores_vectors(out))
    store_vectors<T, Warp::kParts>(region, kRegion, mine, out);
  else
    store_elements<T, Warp::kParts>(region, kRegion, mine, out);
}

// Adds the parts of split sums: a thread has 8 outputs of a token.
template <typename Sum>
__global__ void __launch_bounds__(256) nm_add_parts_kernel(const NmOutput out, int64_t splits) {
  const int64_t rows64 = nm_cuda_padded(out.rows), chunks = rows64 / 8;
  const int64_t item = static_cast<int64_t>(blockIdx.x) * 256 + threadIdx.x;
  const int64_t token = item / chunks, chunk = item % chunks, n = chunk * 8;
  if (token >= out.tokens || n >= out.rows) return;
  const Sum* from =
      static_cast<const Sum*>(out.parts) + token * rows64 + chunk / 8 * 64 + chunk % 8 * 4;
  Sum sums[8] = {};
#pragma unroll 4
  for (int64_t s = 0; s < splits; ++s, from += out.tokens * rows64) {
    const auto low = *reinterpret_cast<const Sums4<Sum>*>(from);
    const auto high = *reinterpret_cast<const Sums4<Sum>*>(from + 32);
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      sums[i] += low.at[i];
      sums[i + 4] += high.at[i];
    }
  }
  const NmRowTerms<Sum, 8, false> terms(out, n);
  float z[8];
  finish(z, sums, terms, x_scales<Sum>(out, token), out.epilogue.activation);
  with_output<Sum>(out, [&](auto y) {
    using Y = decltype(y);
    Y* to = static_cast<Y*>(out.y) + token * out.rows + n;
    if (stores_vectors(out)) {
      store8(to, z);
    } else {
#pragma unroll
      for (int i = 0; i < 8; ++i)
        if (n + i < out.rows) to[i] = from_float<Y>(z[i]);
    }
  });
}

}  // namespace evoprune::cuda
