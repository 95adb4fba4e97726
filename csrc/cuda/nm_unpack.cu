// nm_unpack: canonical values and indices -> the dense weight, +0.0 where nothing is stored.
//
//   dense[r, g*m + index(r, g, i)] = values[r, g*n + i]
//
// Two kernels. 2:4, columns a multiple of 16, aligned: 16 bytes of values a lane, then of dense
//
//   lane         0       1     2       3     ..  31            loads: 16 bytes of values, its indices
//   pieces of    0, 1 | 32, 33 | 2, 3 | 34, 35  ..  62, 63     dense that they make (16 bytes each)
//   lane         0   1   2   3  ..  31 |   0  ..  31           after lanes 2k and 2k + 1 traded a
//   piece        0   1   2   3  ..  31 |  32  ..  63           half: stores of whole sectors
//
// Any other: a block makes one span of a row, up to 2048 columns, in shared memory: zeros, then a
// thread a value puts it where its index says, then the span is stored in order.
//
// Bound by memory: values and indices are read once, dense is written once. Exact; bits are kept as
// they are. An index of m or more is ignored. Source: evoprune_kernels/formats/nm.py.
#include "core/nm_layout.h"
#include "cuda/launch.cuh"
#include "cuda/nm_pack.h"
#include "cuda/ptx.cuh"
#include "cuda/types.cuh"

namespace evoprune::cuda {

constexpr int kUnpackThreads = 256, kUnpackColumns = 2048;

// ---- 2:4 ----
struct HalfPiece {
  uint32_t values[2], indices;  // of 16 bytes of dense
};

__device__ __forceinline__ uint4 unpack_piece(const HalfPiece& p, uint32_t /*tag*/) {
  const uint32_t first = p.indices & 3, second = p.indices >> 2;
  const auto at = [&](uint32_t i) {
    return first == i ? p.values[0] : second == i ? p.values[1] : 0;
  };
  return make_uint4(at(0), at(1), at(2), at(3));
}
__device__ __forceinline__ uint64_t unpack_four(uint32_t values, uint32_t indices) {
  return static_cast<uint64_t>(values & 0xffff) << (16 * (indices & 3)) |
         static_cast<uint64_t>(values >> 16) << (16 * (indices >> 2));
}
__device__ __forceinline__ uint4 unpack_piece(const HalfPiece& p, uint16_t /*tag*/) {
  const uint64_t low = unpack_four(p.values[0], p.indices & 15);
  const uint64_t high = unpack_four(p.values[1], p.indices >> 4);
  return make_uint4(static_cast<uint32_t>(low), static_cast<uint32_t>(low >> 32),
                    static_cast<uint32_t>(high), static_cast<uint32_t>(high >> 32));
}

template <typename Bits>
__global__ void __launch_bounds__(kUnpackThreads) nm_unpack24_kernel(NmUnpackArgs args) {
  constexpr int kPiece = kPer16Bytes<Bits>, kGroups = kPiece / 4, kSpan = 64 * kPiece;
  constexpr unsigned kAllLanes = 0xffffffff;
  using MetaBits = std::conditional_t<kGroups == 1, uint8_t, uint16_t>;
  const int lane = static_cast<int>(threadIdx.x) % 32;
  const bool odd = lane % 2 == 1;
  const int64_t spans = (args.columns + kSpan - 1) / kSpan;
  const int64_t warp = static_cast<int64_t>(blockIdx.x) * (kUnpackThreads / 32) + threadIdx.x / 32;
  const int64_t row = warp / spans, from = warp % spans * kSpan;
  if (row >= args.rows) return;  // the whole warp
  const int64_t loaded = from + ((odd ? 32 : 0) + (lane & ~1)) * kPiece;
  uint4 values{};
  uint32_t indices = 0;
  if (loaded < args.columns) {
    const int64_t at = row * args.columns + loaded;
    values = ptx::load_once(static_cast<const Bits*>(args.values) + at / 2);
    indices = *reinterpret_cast<const MetaBits*>(args.meta + at / 8);
  }
  constexpr int kBits = 4 * kGroups;
  constexpr uint32_t kMask = (1u << kBits) - 1;
  const uint32_t low = indices & kMask, high = indices >> kBits;
  const HalfPiece own{{odd ? values.z : values.x, odd ? values.w : values.y}, odd ? high : low};
  const HalfPiece got{{__shfl_xor_sync(kAllLanes, odd ? values.x : values.z, 1),
                       __shfl_xor_sync(kAllLanes, odd ? values.y : values.w, 1)},
                      __shfl_xor_sync(kAllLanes, odd ? low : high, 1)};
#pragma unroll
  for (int half = 0; half < 2; ++half) {
    const int64_t column = from + (32 * half + lane) * kPiece;
    const bool is_own = odd == (half == 1);
    const HalfPiece p{
        {is_own ? own.values[0] : got.values[0], is_own ? own.values[1] : got.values[1]},
        is_own ? own.indices : got.indices};
    if (column < args.columns)
      ptx::store_global16(static_cast<Bits*>(args.dense) + row * args.columns + column,
                          unpack_piece(p, Bits{}));
  }
}

// ---- any n:m ----
struct NmUnpackSpans {
  NmUnpackArgs args;
  int64_t groups, kept, meta_bytes;  // of a row
  int64_t spans;                     // of a row
  int groups_of_span, bits;          // bits of an index
};

template <typename Bits>
__global__ void __launch_bounds__(kUnpackThreads) nm_unpack_kernel(NmUnpackSpans spans) {
  __shared__ Bits dense[kUnpackColumns];
  const NmUnpackArgs& args = spans.args;
  const int thread = static_cast<int>(threadIdx.x), n = args.n, m = args.m;
  const int64_t row = blockIdx.x / spans.spans;
  const int64_t first_group = blockIdx.x % spans.spans * spans.groups_of_span;
  const int64_t left = spans.groups - first_group;
  const int groups = static_cast<int>(left < spans.groups_of_span ? left : spans.groups_of_span);
  for (int e = thread; e < groups * m; e += kUnpackThreads) dense[e] = Bits{};
  __syncthreads();
  const Bits* values = static_cast<const Bits*>(args.values) + row * spans.kept + first_group * n;
  const uint8_t* meta = args.meta + row * spans.meta_bytes;
  for (int s = thread; s < groups * n; s += kUnpackThreads) {
    const int index = nm_read_index(meta, first_group * n + s, spans.bits);
    if (index < m) dense[s / n * m + index] = values[s];
  }
  __syncthreads();
  Bits* out = static_cast<Bits*>(args.dense) + row * args.columns + first_group * m;
  const int64_t columns = args.columns - first_group * m;
  for (int e = thread; e < groups * m && e < columns; e += kUnpackThreads) out[e] = dense[e];
}

template <typename Bits>
void launch_unpack(const NmUnpackArgs& args, cudaStream_t stream) {
  const auto blocks = [](int64_t count) { return dim3(static_cast<unsigned>(count)); };
  const bool aligned = aligned16(args.values) && aligned16(args.meta) && aligned16(args.dense);
  if (args.n == 2 && args.m == 4 && args.columns % 16 == 0 && aligned) {
    const int64_t warps = args.rows * ceil_div(args.columns, 64 * kPer16Bytes<Bits>);
    launch(nm_unpack24_kernel<Bits>, blocks(ceil_div(warps, kUnpackThreads / 32)),
           dim3(kUnpackThreads), 0, stream, args);
    return;
  }
  NmUnpackSpans spans{args, 0, 0, 0, 0, kUnpackColumns / args.m / 8 * 8, nm_canonical_bits(args.m)};
  spans.groups = nm_groups(args.columns, args.m);
  spans.kept = nm_kept(args.columns, args.n, args.m);
  spans.meta_bytes = nm_meta_bytes(args.columns, args.n, args.m);
  spans.spans = ceil_div(spans.groups, spans.groups_of_span);
  launch(nm_unpack_kernel<Bits>, blocks(args.rows * spans.spans), dim3(kUnpackThreads), 0, stream,
         spans);
}

void nm_unpack(const NmUnpackArgs& args, cudaStream_t stream) {
  if (args.rows == 0 || args.columns == 0) return;
  if (args.dtype == DType::f32) return launch_unpack<uint32_t>(args, stream);
  launch_unpack<uint16_t>(args, stream);
}

}  // namespace evoprune::cuda
