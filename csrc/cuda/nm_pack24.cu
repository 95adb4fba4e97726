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
// an element of each and both layouts, 12.25 bytes move for a weight.
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
  int64_t row, column;
  int lane;
  bool inside;

  __device__ __forceinline__ int64_t at(int64_t columns) const { return row * columns + column; }
};

// ---- what a lane keeps of its piece: load, then bits, kGroups x 4 of them ----

template <int kGroups>
struct KeptByMask {
  uint32_t raw[kGroups];

  __device__ __forceinline__ void load(const NmPackArgs& args, const Piece& piece) {
    Vector<uint32_t, kGroups> v{};
    if (piece.inside)
      v = *reinterpret_cast<const Vector<uint32_t, kGroups>*>(args.mask + piece.at(args.columns));
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
        atomicMin(args.fault, static_cast<Fault>(piece.at(args.columns) / 4 + g) * 64 +
                                  static_cast<Fault>(count));
      kept |= four << (4 * g);
    }
    return kept;
  }
};

// The two best of four, as bits. Every pair is compared once: the order is strict and total.
__device__ __forceinline__ uint32_t best_two(const float (&s)[4]) {
  int above[4] = {};
#pragma unroll
  for (int i = 1; i < 4; ++i)
#pragma unroll
    for (int j = 0; j < i; ++j) {
      const bool first = select::ranks_above(s[j], j, s[i], i);
      above[i] += first;
      above[j] += !first;
    }
  uint32_t kept = 0;
#pragma unroll
  for (int i = 0; i < 4; ++i) kept |= static_cast<uint32_t>(above[i] < 2) << i;
  return kept;
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
  uint4 raw;

  __device__ __forceinline__ void load(const NmPackArgs& args, const Piece& piece) {
    if (piece.inside)
      raw = ptx::load_once(static_cast<const S*>(args.scores) + piece.at(args.columns));
  }
  __device__ __forceinline__ uint32_t bits(const NmPackArgs&, const Piece& piece) const {
    return piece.inside ? best_of<S>(raw) : 0;
  }
};

template <typename S, int kGroups>
struct KeptByScores<S, kGroups, 8> {
  uint2 raw;

  __device__ __forceinline__ void load(const NmPackArgs& args, const Piece& piece) {
    if (piece.inside)
      raw = *reinterpret_cast<const uint2*>(static_cast<const S*>(args.scores) +
                                            piece.at(args.columns));
  }
  __device__ __forceinline__ uint32_t bits(const NmPackArgs&, const Piece& piece) const {
    return piece.inside ? best_of<S>(raw) : 0;
  }
};

// 32 bytes a piece: lane l loads (and ranks) the groups l and 32 + l of the warp's 64, so that a
// load is of whole sectors; its own, 2l and 2l + 1, come by shuffle.
template <typename S, int kGroups>
struct KeptByScores<S, kGroups, 32> {
  uint4 raw[2];

  static __device__ __forceinline__ Piece group(const NmPackArgs& args, const Piece& piece, int i) {
    const int64_t column = piece.column + (32 * i - piece.lane) * 4;
    return {piece.row, column, piece.lane, piece.row < args.rows && column < args.columns};
  }
  __device__ __forceinline__ void load(const NmPackArgs& args, const Piece& piece) {
#pragma unroll
    for (int i = 0; i < 2; ++i) {
      const Piece own = group(args, piece, i);
      if (own.inside)
        raw[i] = ptx::load_once(static_cast<const S*>(args.scores) + own.at(args.columns));
    }
  }
  __device__ __forceinline__ uint32_t bits(const NmPackArgs& args, const Piece& piece) const {
    uint32_t ranked = 0;
#pragma unroll
    for (int i = 0; i < 2; ++i)
      if (group(args, piece, i).inside) ranked |= best_of<S>(raw[i]) << (4 * i);
    const uint32_t even = __shfl_sync(kAllLanes, ranked, 2 * piece.lane % 32);
    const uint32_t odd = __shfl_sync(kAllLanes, ranked, 2 * piece.lane % 32 + 1);
    const int half = piece.lane / 16 * 4;
    return (even >> half & 15) | (odd >> half & 15) << 4;
  }
};

// ---- a piece of weights and its kept bits -> 8 bytes of values, kGroups x 4 bits of indices ----
struct Packed {
  uint32_t values[2], indices;
};

__device__ __forceinline__ Packed pack_piece(const uint4& w, uint32_t kept, uint32_t /*tag*/) {
  const uint32_t indices = nm24_indices(kept), first = indices & 3, second = indices >> 2;
  const uint32_t x0 = kept & 1 ? w.x : 0, x1 = kept & 2 ? w.y : 0;
  const uint32_t x2 = kept & 4 ? w.z : 0, x3 = kept & 8 ? w.w : 0;
  const uint32_t a = first == 0 ? x0 : first == 1 ? x1 : x2;
  const uint32_t b = second == 1 ? x1 : second == 2 ? x2 : x3;
  return {{positive_zero(a), positive_zero(b)}, indices};
}

__device__ __forceinline__ uint32_t pack_four(uint32_t x01, uint32_t x23, uint32_t kept,
                                              uint32_t indices) {
  x01 &= (kept & 1 ? 0xffffu : 0) | (kept & 2 ? 0xffff0000u : 0);
  x23 &= (kept & 4 ? 0xffffu : 0) | (kept & 8 ? 0xffff0000u : 0);
  const uint32_t bytes = 0x1010 + (indices & 3) * 0x22 + (indices >> 2) * 0x2200;
  return positive_zeros(__byte_perm(x01, x23, bytes));
}
__device__ __forceinline__ Packed pack_piece(const uint4& w, uint32_t kept, uint16_t /*tag*/) {
  const uint32_t low = nm24_indices(kept & 15), high = nm24_indices(kept >> 4);
  return {{pack_four(w.x, w.y, kept & 15, low), pack_four(w.z, w.w, kept >> 4, high)},
          low | high << 4};
}

// Of two pieces a lane, 32 pieces apart: an even lane gets its neighbour's half of the first, an odd
// one of the second. 16 bytes of values and 2 kGroups x 4 bits of indices, in order.
template <int kGroups>
__device__ __forceinline__ Packed trade(const Packed (&p)[2], bool odd, uint4& values) {
  const Packed own = odd ? p[1] : p[0], other = odd ? p[0] : p[1];
  const uint32_t a = __shfl_xor_sync(kAllLanes, other.values[0], 1);
  const uint32_t b = __shfl_xor_sync(kAllLanes, other.values[1], 1);
  const uint32_t bits = __shfl_xor_sync(kAllLanes, other.indices, 1);
  const uint32_t v0 = own.values[0], v1 = own.values[1];
  values = odd ? make_uint4(a, b, v0, v1) : make_uint4(v0, v1, a, b);
  constexpr int kBits = 4 * kGroups;
  return {{}, odd ? bits | own.indices << kBits : own.indices | bits << kBits};
}

template <typename Bits, typename Kept>
__global__ void __launch_bounds__(kWarps * 32) nm_pack24_kernel(NmPackArgs args) {
  constexpr int kPiece = kPer16Bytes<Bits>, kGroups = kPiece / 4, kSpan = 64 * kPiece;
  using MetaBits = std::conditional_t<kGroups == 1, uint8_t, uint16_t>;
  __shared__ MetaTile tile;
  const int lane = static_cast<int>(threadIdx.x) % 32, warp = static_cast<int>(threadIdx.x) / 32;
  const bool odd = lane % 2 == 1, cuda = args.cuda_meta != nullptr;
  const int64_t columns = args.columns, columns64 = nm_cuda_padded(columns);
  const int64_t spans = (columns + kSpan - 1) / kSpan;
  const int64_t rows_from = blockIdx.x / spans * MetaTile::kRows, from = blockIdx.x % spans * kSpan;
  const int traded = (odd ? 32 : 0) + (lane & ~1);  // the pieces that this lane stores
  const int64_t stored = from + traded * kPiece;
#pragma unroll 1
  for (int i = 0; i < kRowsOfWarp; ++i) {
    const int r = warp * kRowsOfWarp + i;
    const int64_t row = rows_from + r;
    Piece piece[2];
    uint4 weight[2] = {};
    Kept kept[2];
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      const int64_t column = from + (32 * half + lane) * kPiece;
      piece[half] = {row, column, lane, row < args.rows && column < columns};
      if (piece[half].inside)
        weight[half] =
            ptx::load_once(static_cast<const Bits*>(args.weight) + piece[half].at(columns));
      kept[half].load(args, piece[half]);
    }
    Packed packed[2];
#pragma unroll
    for (int half = 0; half < 2; ++half)
      packed[half] = pack_piece(weight[half], kept[half].bits(args, piece[half]), Bits{});
    uint4 values;
    const auto bits = static_cast<MetaBits>(trade<kGroups>(packed, odd, values).indices);
    if (row < args.rows && stored < columns) {
      const int64_t at = row * columns + stored;
      ptx::store_global16(static_cast<Bits*>(args.values) + at / 2, values);
      *reinterpret_cast<MetaBits*>(args.meta + at / 8) = bits;
    }
    if (cuda && stored < columns64) {
      const int64_t at = row * columns64 + stored;
      ptx::store_global16(static_cast<Bits*>(args.cuda_values) + at / 2, values);
      tile.set(r, traded * kPiece / 8, bits);
    }
  }
  if (!cuda) return;
  __syncthreads();
  for (int t = warp; t < kSpan / kNmCudaTile; t += kWarps) {
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
