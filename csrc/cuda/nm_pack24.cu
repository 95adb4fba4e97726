// nm_pack24: selects (by scores) or takes (from a mask) two of every four weights and packs them,
// once canonically and, where wanted, once more in the layout "cuda"; one pass over memory.
//
//   values[r, 2g + i] = weight[r, 4g + index(r, g, i)]      meta: 4 bits a group, first | second << 2
//
//   a block: 64 rows x 64 pieces of 16 bytes (256 columns of 32-bit, 512 of 16-bit weights)
//
//   row    piece 0   1   2   3  ..  31 |  32   33  ..  63      a warp: 4 rows, one after the other
//   lane         0   1   2   3  ..  31 |   0    1  ..  31      loads: 16 bytes a lane, two a row
//   packs to  8 bytes of values and 4 or 8 bits of meta; lanes 2k and 2k + 1 then trade halves:
//   lane         0   0   2   2  ..  30 |   1    1  ..  31      stores: 16 bytes of values a lane
//
// Needs: columns a multiple of 16, every pointer 16-byte aligned (nm_pack.cu serves the rest).
// A lane has the meta bits of 2 (32-bit) or 4 groups: one byte or two, and the lanes of a warp have
// those of a row's 256 or 512 columns in order, whole sectors. The block collects them in shared
// memory too (nm_meta.cuh), where each warp then takes tiles of 64 x 64 for the layout "cuda".
// Rows and columns of padding (to 64) run along as groups that keep nothing.
//
// Bound by memory: weight and scores (or mask) are read once, the outputs written once. At 4 bytes
// an element of each and both layouts, 12.25 bytes move for a weight; at 2 bytes 6.25, with about 27
// PTX instructions: a processor that issues 4 warps a cycle could move 30 bytes a cycle, its share of
// the memory's rate is 10 to 15 on A100 and H100 (calculated, not measured).
// Exact. -0.0 becomes +0.0; any other bits are kept as they are. Ties: the lowest index wins, NaN
// ranks below every number (select/nm.h). A mask that keeps more than 2 of a group is reported.
// Source: "PTX ISA", 9.7.14.6; Zhou et al., "Learning N:M Fine-grained Structured Sparse Neural
// Networks From Scratch", ICLR 2021.
#include "core/nm_cuda_layout.h"
#include "cuda/launch.cuh"
#include "cuda/nm_meta.cuh"
#include "cuda/nm_pack.h"
#include "cuda/ptx.cuh"
#include "cuda/types.cuh"
#include "select/nm.h"

namespace evoprune::cuda {

constexpr int kWarps = 16, kRowsOfWarp = MetaTile::kRows / kWarps;
constexpr unsigned kAllLanes = 0xffffffff;

// Where the piece of a lane begins.
struct Piece {
  int64_t column, at;  // at: from the start of the matrix
  unsigned lane;
  bool row_inside, inside;
};

// ---- what a lane keeps of its piece: load, then bits, kGroups x 4 of them ----

template <int kGroups>
struct KeptByMask {
  static constexpr bool kMayLack = true;
  uint32_t raw[kGroups];

  __device__ __forceinline__ void load(const NmPackArgs& args, const Piece& piece) {
    Vector<uint32_t, kGroups> v{};
    if (piece.inside) v = *reinterpret_cast<const Vector<uint32_t, kGroups>*>(args.mask + piece.at);
#pragma unroll
    for (int g = 0; g < kGroups; ++g) raw[g] = v.at[g];
  }
  __device__ __forceinline__ uint32_t bits(const NmPackArgs& args, const Piece& piece) const {
    uint32_t kept = 0;
#pragma unroll
    for (int g = 0; g < kGroups; ++g) {
      uint32_t any = raw[g] | raw[g] >> 4;  // bit 0 of a byte: whether the byte is not 0
      any |= any >> 2;
      any |= any >> 1;
      const uint32_t four = (any & 0x01010101u) * 0x01020408u >> 24 & 15;
      const int count = __popc(four);
      if (count > 2)
        atomicMin(args.fault,
                  (static_cast<Fault>(piece.at) / 4 + g) * 64 + static_cast<Fault>(count));
      kept |= four << (4 * g);
    }
    return kept;
  }
};

// The two best of four, as bits. Every pair is compared once: the order is strict and total. One is
// kept where it wins at least two of its three comparisons.
__device__ __forceinline__ uint32_t best_two(const float (&s)[4]) {
  const auto first = [&](int i, int j) { return select::first_ranks_above(s[i], s[j]); };
  const auto two_of = [](bool a, bool b, bool c) { return (a & b) | (c & (a | b)); };
  const bool w01 = first(0, 1), w02 = first(0, 2), w03 = first(0, 3);
  const bool w12 = first(1, 2), w13 = first(1, 3), w23 = first(2, 3);
  const bool k0 = two_of(w01, w02, w03), k1 = two_of(!w01, w12, w13);
  const bool k2 = two_of(!w02, !w12, w23), k3 = two_of(!w03, !w13, !w23);
  return (k0 ? 1u : 0u) | (k1 ? 2u : 0u) | (k2 ? 4u : 0u) | (k3 ? 8u : 0u);
}

// The groups of 4 scores of type S in 8 or 16 bytes -> 4 bits each.
template <typename S, typename Raw>
__device__ __forceinline__ uint32_t best_of(const Raw& raw) {
  uint32_t kept = 0;
#pragma unroll
  for (int g = 0; g < static_cast<int>(sizeof(Raw) / sizeof(S) / 4); ++g) {
    float s[4];
#pragma unroll
    for (int i = 0; i < 4; ++i) s[i] = to_float(reinterpret_cast<const S*>(&raw)[4 * g + i]);
    kept |= best_two(s) << (4 * g);
  }
  return kept;
}

// kBytes of scores beside a piece of 16 bytes of weights.
template <typename S, int kGroups, int kBytes = 4 * kGroups * static_cast<int>(sizeof(S))>
struct KeptByScores;

template <typename S, int kGroups>
struct KeptByScores<S, kGroups, 16> {
  static constexpr bool kMayLack = false;
  uint4 raw;

  __device__ __forceinline__ void load(const NmPackArgs& args, const Piece& piece) {
    if (piece.inside) raw = ptx::load_once(static_cast<const S*>(args.scores) + piece.at);
  }
  __device__ __forceinline__ uint32_t bits(const NmPackArgs&, const Piece& piece) const {
    return piece.inside ? best_of<S>(raw) : 0;
  }
};

template <typename S, int kGroups>
struct KeptByScores<S, kGroups, 8> {
  static constexpr bool kMayLack = false;
  uint2 raw;

  __device__ __forceinline__ void load(const NmPackArgs& args, const Piece& piece) {
    if (piece.inside)
      raw = *reinterpret_cast<const uint2*>(static_cast<const S*>(args.scores) + piece.at);
  }
  __device__ __forceinline__ uint32_t bits(const NmPackArgs&, const Piece& piece) const {
    return piece.inside ? best_of<S>(raw) : 0;
  }
};

// 32 bytes a piece: lane l loads (and ranks) the groups l and 32 + l of the warp's 64, so that a
// load is of whole sectors; its own, 2l and 2l + 1, come by shuffle.
template <typename S, int kGroups>
struct KeptByScores<S, kGroups, 32> {
  static constexpr bool kMayLack = false;
  uint4 raw[2];

  static __device__ __forceinline__ Piece group(const NmPackArgs& args, const Piece& piece, int i) {
    const int64_t right = 4 * (32 * i - static_cast<int>(piece.lane)),
                  column = piece.column + right;
    return {column, piece.at + right, piece.lane, piece.row_inside,
            piece.row_inside && column < args.columns};
  }
  __device__ __forceinline__ void load(const NmPackArgs& args, const Piece& piece) {
#pragma unroll
    for (int i = 0; i < 2; ++i) {
      const Piece own = group(args, piece, i);
      if (own.inside) raw[i] = ptx::load_once(static_cast<const S*>(args.scores) + own.at);
    }
  }
  __device__ __forceinline__ uint32_t bits(const NmPackArgs& args, const Piece& piece) const {
    uint32_t ranked = 0;
#pragma unroll
    for (int i = 0; i < 2; ++i)
      if (group(args, piece, i).inside) ranked |= best_of<S>(raw[i]) << (4 * i);
    const uint32_t even = __shfl_sync(kAllLanes, ranked, 2 * piece.lane % 32);
    const uint32_t odd = __shfl_sync(kAllLanes, ranked, 2 * piece.lane % 32 + 1);
    const unsigned half = piece.lane / 16 * 4;
    return (even >> half & 15) | (odd >> half & 15) << 4;
  }
};

// ---- a piece of weights and its kept bits -> 8 bytes of values, kGroups x 4 bits of indices ----
// kMayLack: a group may keep fewer than 2, and then stores 0 in the places that fill it up. Scores
// always keep 2; outside the matrix the weights are 0 already.
struct Packed {
  uint32_t values[2], indices;
};

template <bool kMayLack>
__device__ __forceinline__ Packed pack_piece(const uint4& w, uint32_t kept, uint32_t /*tag*/) {
  const uint32_t indices = nm24_indices(kept), first = indices & 3, second = indices >> 2;
  const auto stored = [&](uint32_t i, uint32_t x) { return !kMayLack || kept >> i & 1 ? x : 0; };
  const uint32_t x0 = stored(0, w.x), x1 = stored(1, w.y), x2 = stored(2, w.z), x3 = stored(3, w.w);
  const uint32_t a = first == 0 ? x0 : first == 1 ? x1 : x2;
  const uint32_t b = second == 1 ? x1 : second == 2 ? x2 : x3;
  return {{positive_zero(a), positive_zero(b)}, indices};
}

template <bool kMayLack>
__device__ __forceinline__ uint32_t pack_four(uint32_t x01, uint32_t x23, uint32_t kept,
                                              uint32_t indices) {
  if constexpr (kMayLack) {
    x01 &= (kept & 1 ? 0xffffu : 0) | (kept & 2 ? 0xffff0000u : 0);
    x23 &= (kept & 4 ? 0xffffu : 0) | (kept & 8 ? 0xffff0000u : 0);
  }
  // bytes 2i, 2i + 1, 2j, 2j + 1 of the eight
  const uint32_t bytes = 0x1010 + (indices & 3) * 0x22 + (indices >> 2) * 0x2200;
  return positive_zeros(__byte_perm(x01, x23, bytes));
}
template <bool kMayLack>
__device__ __forceinline__ Packed pack_piece(const uint4& w, uint32_t kept, uint16_t /*tag*/) {
  const uint32_t low = nm24_indices(kept & 15), high = nm24_indices(kept >> 4);
  return {{pack_four<kMayLack>(w.x, w.y, kept & 15, low),
           pack_four<kMayLack>(w.z, w.w, kept >> 4, high)},
          low | high << 4};
}

// Of two pieces a lane, 32 pieces apart: an even lane gets its neighbour's half of the first, an odd
// one of the second. Gives 16 bytes of values and 2 kGroups x 4 bits of indices, in order.
template <int kGroups>
__device__ __forceinline__ uint32_t trade(const Packed (&p)[2], bool odd, uint4& values) {
  const Packed own = odd ? p[1] : p[0], other = odd ? p[0] : p[1];
  const uint32_t a = __shfl_xor_sync(kAllLanes, other.values[0], 1);
  const uint32_t b = __shfl_xor_sync(kAllLanes, other.values[1], 1);
  const uint32_t bits = __shfl_xor_sync(kAllLanes, other.indices, 1);
  const uint32_t v0 = own.values[0], v1 = own.values[1];
  values = odd ? make_uint4(a, b, v0, v1) : make_uint4(v0, v1, a, b);
  constexpr int kBits = 4 * kGroups;
  return odd ? bits | own.indices << kBits : own.indices | bits << kBits;
}

template <typename Bits, typename Kept>
__global__ void __launch_bounds__(kWarps * 32) nm_pack24_kernel(NmPackArgs args) {
  constexpr int kPiece = kPer16Bytes<Bits>, kGroups = kPiece / 4, kSpan = 64 * kPiece;
  using MetaBits = std::conditional_t<kGroups == 1, uint8_t, uint16_t>;
  __shared__ MetaTile tile;
  const unsigned lane = threadIdx.x % 32, warp = threadIdx.x / 32;
  const bool odd = lane % 2 == 1, cuda = args.cuda_meta != nullptr;
  const int64_t columns = args.columns, columns64 = nm_cuda_padded(columns);
  const unsigned spans = static_cast<unsigned>((columns + kSpan - 1) / kSpan);
  const int64_t rows_from = blockIdx.x / spans * int64_t{MetaTile::kRows};
  const int64_t from = blockIdx.x % spans * int64_t{kSpan};
  const unsigned traded = (odd ? 32 : 0) + (lane & ~1u);  // the pieces that this lane stores
  const int64_t stored = from + traded * kPiece;
#pragma unroll 1
  for (unsigned i = 0; i < kRowsOfWarp; ++i) {
    const unsigned r = warp * kRowsOfWarp + i;
    const int64_t row = rows_from + r, row_at = row * columns;
    const bool row_inside = row < args.rows;
    Piece piece[2];
    uint4 weight[2] = {};
    Kept kept[2];
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      const int64_t column = from + (32 * half + lane) * kPiece;
      piece[half] = {column, row_at + column, lane, row_inside, row_inside && column < columns};
      if (piece[half].inside)
        weight[half] = ptx::load_once(static_cast<const Bits*>(args.weight) + piece[half].at);
      kept[half].load(args, piece[half]);
    }
    Packed packed[2];
#pragma unroll
    for (int half = 0; half < 2; ++half)
      packed[half] =
          pack_piece<Kept::kMayLack>(weight[half], kept[half].bits(args, piece[half]), Bits{});
    uint4 values;
    const auto bits = static_cast<MetaBits>(trade<kGroups>(packed, odd, values));
    if (row_inside && stored < columns) {
      const uint64_t at = static_cast<uint64_t>(row_at + stored);
      ptx::store_global16(static_cast<Bits*>(args.values) + at / 2, values);
      *reinterpret_cast<MetaBits*>(args.meta + at / 8) = bits;
    }
    if (cuda && stored < columns64) {
      const uint64_t at = static_cast<uint64_t>(row * columns64 + stored);
      ptx::store_global16(static_cast<Bits*>(args.cuda_values) + at / 2, values);
      tile.set(r, traded * kPiece / 8, bits);
    }
  }
  if (!cuda) return;
  __syncthreads();
  for (unsigned t = warp; t < kSpan / kNmCudaTile; t += kWarps) {
    const int64_t across = from / kNmCudaTile + t, tiles = columns64 / kNmCudaTile;
    if (across >= tiles) return;
    const int64_t at = rows_from / kNmCudaTile * tiles + across;
    tile.store(t, lane, false, args.cuda_meta + at * kNmCudaTile * kNmCudaTile / 32);
  }
}

template <typename Bits, typename Kept>
void launch_pack24(const NmPackArgs& args, cudaStream_t stream) {
  const int64_t blocks =
      ceil_div(args.rows, MetaTile::kRows) * ceil_div(args.columns, 64 * kPer16Bytes<Bits>);
  launch(nm_pack24_kernel<Bits, Kept>, dim3(static_cast<unsigned>(blocks)), dim3(kWarps * 32), 0,
         stream, args);
}

template <typename Bits>
void launch_pack24_of(const NmPackArgs& args, cudaStream_t stream) {
  constexpr int kGroups = kPer16Bytes<Bits> / 4;
  if (args.mask != nullptr) return launch_pack24<Bits, KeptByMask<kGroups>>(args, stream);
  switch (args.scores_dtype) {
    case DType::f16:
      return launch_pack24<Bits, KeptByScores<__half, kGroups>>(args, stream);
    case DType::bf16:
      return launch_pack24<Bits, KeptByScores<__nv_bfloat16, kGroups>>(args, stream);
    default:
      return launch_pack24<Bits, KeptByScores<float, kGroups>>(args, stream);
  }
}

void nm_pack24(const NmPackArgs& args, cudaStream_t stream) {
  if (args.dtype == DType::f32) return launch_pack24_of<uint32_t>(args, stream);
  launch_pack24_of<uint16_t>(args, stream);
}

}  // namespace evoprune::cuda
