// nm_pack for any n:m and any shape: scores or mask -> kept places -> values and one bit stream of
// indices a row. Also chooses the kernel: 2:4 of aligned problems goes to nm_pack24.cu.
//
//   values[r, g*n + i] = weight[r, g*m + index(r, g, i)]      index increasing in i
//
//   row r    | span 0: groups 0 .. | span 1 | ..   a block: one span of a row, up to 2048 columns and
//                                                  512 groups, a multiple of 8 groups: whole bytes
//   columns  s0 s1 .. | s0 s1 .. |                 of meta
//   1  a thread an element    kept[e]: the mask, or whether fewer than n of its group rank above it
//   2  a thread a group       kept and filled-up places of the group as two words of m bits
//   3  a thread an element    the place's slot: how many places are before it; weight -> values
//   4  a thread a byte        indices -> meta
//
// Loads are one element a lane, neighbours in memory; values are stored in ascending slots, so a
// warp writes one dense run. Bound by memory where m is small, by the m comparisons an element of
// step 1 where it is large. Weights that are not kept share their sectors with ones that are.
// Exact. -0.0 becomes +0.0; any other bits are kept as they are. Ties: the lowest index wins, NaN
// ranks below every number (select/nm.h). A mask that keeps more than n of a group is reported.
// Source: Zhou et al., "Learning N:M Fine-grained Structured Sparse Neural Networks From Scratch",
// ICLR 2021.
#include "core/nm_layout.h"
#include "cuda/launch.cuh"
#include "cuda/nm_meta.cuh"
#include "cuda/nm_pack.h"
#include "cuda/types.cuh"
#include "select/nm.h"

namespace evoprune::cuda {

constexpr int kPackThreads = 256, kMaxColumns = 2048, kMaxGroups = 512;

struct NmPackSpans {
  NmPackArgs args;
  int64_t groups, kept, meta_bytes;  // of a row
  int64_t spans;                     // of a row
  int groups_of_span, bits;          // bits of an index
};

__device__ __forceinline__ float score_at(const NmPackArgs& args, int64_t at) {
  switch (args.scores_dtype) {
    case DType::f16:
      return to_float(static_cast<const __half*>(args.scores)[at]);
    case DType::bf16:
      return to_float(static_cast<const __nv_bfloat16*>(args.scores)[at]);
    default:
      return static_cast<const float*>(args.scores)[at];
  }
}

struct PackShared {
  float scores[kMaxColumns];
  uint8_t keep[kMaxColumns], index[kMaxColumns];  // of a column, of a slot
  uint32_t kept[kMaxGroups], filled[kMaxGroups];
};

// Step 1, of `size` columns from `start` on (an offset in the matrix).
__device__ __forceinline__ void find_kept(const NmPackArgs& args, PackShared& shared, int64_t start,
                                          int size) {
  const int thread = static_cast<int>(threadIdx.x);
  if (args.mask != nullptr) {
    for (int e = thread; e < size; e += kPackThreads) shared.keep[e] = args.mask[start + e] != 0;
    return;
  }
  for (int e = thread; e < size; e += kPackThreads) shared.scores[e] = score_at(args, start + e);
  __syncthreads();
  for (int e = thread; e < size; e += kPackThreads) {
    const int first = e / args.m * args.m, end = first + args.m < size ? first + args.m : size;
    int above = 0;
    for (int j = first; j < end; ++j)
      above += j != e && select::ranks_above(shared.scores[j], j, shared.scores[e], e);
    shared.keep[e] = above < args.n;
  }
}

template <typename Bits>
__global__ void __launch_bounds__(kPackThreads) nm_pack_kernel(NmPackSpans spans) {
  __shared__ PackShared shared;
  const NmPackArgs& args = spans.args;
  const int thread = static_cast<int>(threadIdx.x), n = args.n, m = args.m;
  const int64_t row = blockIdx.x / spans.spans;
  const int64_t first_group = blockIdx.x % spans.spans * spans.groups_of_span;
  const int64_t groups_left = spans.groups - first_group;
  const int groups =
      static_cast<int>(groups_left < spans.groups_of_span ? groups_left : spans.groups_of_span);
  const int64_t start = row * args.columns + first_group * m;
  const int64_t columns_left = args.columns - first_group * m;
  const int size = static_cast<int>(columns_left < groups * m ? columns_left : groups * m);
  find_kept(args, shared, start, size);
  __syncthreads();

  for (int g = thread; g < groups; g += kPackThreads) {
    uint32_t kept = 0;
    for (int i = 0; i < m && g * m + i < size; ++i)
      kept |= static_cast<uint32_t>(shared.keep[g * m + i]) << i;
    uint32_t filled = kept;
    for (int count = __popc(kept); count < n; ++count) filled |= (filled + 1) & ~filled;
    shared.kept[g] = kept;
    shared.filled[g] = filled;
    if (__popc(kept) > n)
      atomicMin(args.fault, static_cast<Fault>(row * spans.groups + first_group + g) * 64 +
                                static_cast<Fault>(__popc(kept)));
  }
  __syncthreads();

  Bits* values = static_cast<Bits*>(args.values) + row * spans.kept + first_group * n;
  for (int e = thread; e < groups * m; e += kPackThreads) {
    const int g = e / m, i = e % m;
    if ((shared.filled[g] >> i & 1) == 0) continue;
    const int slot = __popc(shared.filled[g] & ((uint32_t{1} << i) - 1));
    if (slot >= n) continue;  // of a group that is reported
    Bits value{};
    if (shared.kept[g] >> i & 1)
      value = positive_zero(static_cast<const Bits*>(args.weight)[start + e]);
    values[g * n + slot] = value;
    shared.index[g * n + slot] = static_cast<uint8_t>(i);
  }
  __syncthreads();

  const int slots = groups * n, bits = spans.bits;
  uint8_t* meta = args.meta + row * spans.meta_bytes + first_group * n * bits / 8;
  for (int k = thread; k < (slots * bits + 7) / 8; k += kPackThreads) {
    uint32_t byte = 0;
    for (int s = 8 * k / bits; s < slots && s * bits < 8 * k + 8; ++s) {
      const int at = s * bits - 8 * k;
      byte |= at >= 0 ? uint32_t{shared.index[s]} << at : uint32_t{shared.index[s]} >> -at;
    }
    meta[k] = static_cast<uint8_t>(byte);
  }
}

static void nm_pack_any(const NmPackArgs& args, cudaStream_t stream) {
  NmPackSpans spans{args, 0, 0, 0, 0, 0, nm_canonical_bits(args.m)};
  spans.groups = nm_groups(args.columns, args.m);
  spans.kept = nm_kept(args.columns, args.n, args.m);
  spans.meta_bytes = nm_meta_bytes(args.columns, args.n, args.m);
  const int fit = kMaxColumns / args.m / 8 * 8;
  spans.groups_of_span = fit < kMaxGroups ? fit : kMaxGroups;
  spans.spans = ceil_div(spans.groups, spans.groups_of_span);
  const auto kernel =
      args.dtype == DType::f32 ? nm_pack_kernel<uint32_t> : nm_pack_kernel<uint16_t>;
  launch(kernel, dim3(static_cast<unsigned>(args.rows * spans.spans)), dim3(kPackThreads), 0,
         stream, spans);
}

// One pass needs 2:4, pieces of 16 columns and 16-byte accesses.
static bool fits_one_pass(const NmPackArgs& args) {
  const void* pointers[] = {args.weight, args.mask,        args.scores,   args.values,
                            args.meta,   args.cuda_values, args.cuda_meta};
  for (const void* p : pointers)
    if (!aligned16(p)) return false;
  return args.n == 2 && args.m == 4 && args.columns % 16 == 0;
}

void nm_pack(const NmPackArgs& args, cudaStream_t stream) {
  if (args.rows == 0 || args.columns == 0) return;
  if (fits_one_pass(args)) return nm_pack24(args, stream);
  nm_pack_any(args, stream);
  if (args.cuda_meta == nullptr) return;
  nm_prepare_cuda({args.values, args.meta, args.cuda_values, args.cuda_meta, nullptr,
                   args.dtype == DType::f32 ? 4 : 2, 1, args.rows, args.columns},
                  stream);
}

}  // namespace evoprune::cuda
