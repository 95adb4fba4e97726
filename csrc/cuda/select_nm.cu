// select_nm: which n of every m consecutive scores of a row are kept.
//
//   mask[r, g*m + i] = rank of scores[r, g*m + i] within its group < n
//
//   scores [rows, columns]   | g0: m entries | g1 | g2 | ..  | last: what is left |   row after row
//
//   select_nm_kernel: m = 2, 4, 8, 16 or 32 divides the columns; so groups are a flat list
//     lane     16 bytes: V = 4 scores of 32 bits or 8 of 16; two of them, a block apart
//     m <= V   V / m groups of its own                        m = 4, fp32:   | lane 0 | lane 1 | ..
//     m > V    m / V lanes side by side share a group: each   m = 16, fp32:  | lanes 0-3 | 4-7 | ..
//              ranks its V scores against all m, those of the others come by shuffles
//   select_nm_any_kernel: any other shape, any alignment
//     block    up to kSpan scores of whole groups, which lie side by side; keys in shared memory
//     thread   one score at a time, ranked against its group
//
// Each score is read once, in whole sectors, each mask byte written once. Bound by memory for m up to
// 8; m comparisons a score make m = 16 and 32 bound by instructions. Exact. Ties: the lowest index wins,
// NaN ranks below every number: the order of select/rank.h's keys, the masks of select/nm.h.
// Source: Zhou et al., "Learning N:M Fine-grained Structured Sparse Neural Networks From Scratch",
// ICLR 2021.
#include "cuda/launch.cuh"
#include "cuda/select_nm.h"
#include "cuda/selection.cuh"
#include "select/nm.h"
#include "select/rank.h"

namespace evoprune::cuda {

namespace {

constexpr int kThreads = 256, kVectors = 2, kSpan = 2048;

}  // namespace

// f16 and bf16 differ in the bits of +inf only.
template <typename Word>
struct SelectNmBits {
  const Word* scores;
  uint8_t* mask;
  int64_t rows, columns;
  int n, m;
  Word infinity;
};

// Bit i: key i of this lane is among the n highest of its group. Every lane of a warp calls.
template <int kM, int kPer>
__device__ __forceinline__ uint32_t kept_of_groups(const uint32_t (&keys)[kPer], int n) {
  constexpr int kOwn = kM < kPer ? kM : kPer, kLanes = kM / kOwn;
  int above[kPer];
#pragma unroll
  for (int i = 0; i < kPer; ++i) above[i] = kOwn - 1 - i % kOwn;  // as if all later ones were
#pragma unroll
  for (int i = 0; i < kPer; ++i)
#pragma unroll
    for (int j = i / kOwn * kOwn; j < i; ++j) {
      const bool first = keys[j] >= keys[i];
      above[i] += first;
      above[j] -= first;
    }
#pragma unroll
  for (int other = 1; other < kLanes; ++other) {
    // a lane before this one wins ties too: its keys count as one higher
    const uint32_t wins_ties = (threadIdx.x ^ other) < threadIdx.x;
#pragma unroll
    for (int j = 0; j < kPer; ++j) {
      const uint32_t key = __shfl_xor_sync(0xffffffffu, keys[j], other) + wins_ties;
#pragma unroll
      for (int i = 0; i < kPer; ++i) above[i] += key > keys[i];
    }
  }
  uint32_t kept = 0;
#pragma unroll
  for (int i = 0; i < kPer; ++i) kept |= static_cast<uint32_t>(above[i] < n) << i;
  return kept;
}

template <int kM, typename Word>
__global__ void __launch_bounds__(kThreads)
    select_nm_kernel(const __grid_constant__ SelectNmBits<Word> args) {
  constexpr int kPer = kPer16Bytes<Word>;
  const int64_t entries = args.rows * args.columns;
  const int64_t first =
      (static_cast<int64_t>(blockIdx.x) * (kVectors * kThreads) + threadIdx.x) * kPer;
  Vector<Word, kPer> words[kVectors] = {};
#pragma unroll
  for (int v = 0; v < kVectors; ++v) {
    const int64_t at = first + v * kThreads * kPer;
    if (at < entries) words[v] = load_bits(args.scores + at);
  }
#pragma unroll
  for (int v = 0; v < kVectors; ++v) {
    const int64_t at = first + v * kThreads * kPer;
    uint32_t keys[kPer];
#pragma unroll
    for (int i = 0; i < kPer; ++i) keys[i] = select::rank_key(words[v].at[i], args.infinity);
    const uint32_t kept = kept_of_groups<kM>(keys, args.n);
    if (at < entries) store_mask<kPer>(args.mask + at, kept);
  }
}

// A score of a span that starts with a group: where its group begins, its place in it, how many the
// group has. `left`: columns from the start of the span to the end of its first row.
struct InGroup {
  int start, place, count;
};
__device__ __forceinline__ InGroup in_group(int i, int64_t left, int64_t columns, int m) {
  int64_t after = left - i;  // columns from here to the end of the row
  int place = i % m;
  if (after <= 0) {
    const int over = static_cast<int>(-after);
    const int column = over < columns ? over : over % static_cast<int>(columns);
    after = columns - column;
    place = column % m;
  }
  const int64_t count = after + place;
  return {i - place, place, count < m ? static_cast<int>(count) : m};
}

template <typename Word>
__global__ void __launch_bounds__(kThreads)
    select_nm_any_kernel(const __grid_constant__ SelectNmBits<Word> args) {
  __shared__ uint32_t keys[kSpan];
  const int64_t in_row = (args.columns + args.m - 1) / args.m, groups = in_row * args.rows;
  const int a_block = kSpan / args.m;
  const int64_t group = static_cast<int64_t>(blockIdx.x) * a_block;
  const int64_t next = group + a_block < groups ? group + a_block : groups;
  const int64_t left = args.columns - group % in_row * args.m;
  const int64_t start = (group / in_row + 1) * args.columns - left;
  const int64_t end = next / in_row * args.columns + next % in_row * args.m;
  const int count = static_cast<int>(end - start);
  const Word* scores = args.scores + start;
#pragma unroll 4
  for (int i = threadIdx.x; i < count; i += kThreads)
    keys[i] = select::rank_key(scores[i], args.infinity);
  __syncthreads();
  for (int i = threadIdx.x; i < count; i += kThreads) {
    const InGroup g = in_group(i, left, args.columns, args.m);
    const uint32_t own = keys[i];
    int above = 0;
    for (int j = 0; j < g.count; ++j) above += keys[g.start + j] + (j < g.place) > own;
    args.mask[start + i] = above < args.n;
  }
}

namespace {

template <typename Word>
void run(const SelectNmArgs& a, Word infinity, cudaStream_t stream) {
  const SelectNmBits<Word> args{
      static_cast<const Word*>(a.scores), a.mask, a.rows, a.columns, a.n, a.m, infinity};
  const int64_t entries = a.rows * a.columns;
  auto* kernel = a.m == 2    ? select_nm_kernel<2, Word>
                 : a.m == 4  ? select_nm_kernel<4, Word>
                 : a.m == 8  ? select_nm_kernel<8, Word>
                 : a.m == 16 ? select_nm_kernel<16, Word>
                 : a.m == 32 ? select_nm_kernel<32, Word>
                             : nullptr;
  const bool flat = kernel != nullptr && a.columns % a.m == 0 && entries % kPer16Bytes<Word> == 0 &&
                    reinterpret_cast<uintptr_t>(a.scores) % 16 == 0;
  const int64_t blocks = flat ? ceil_div(entries, kVectors * kThreads * kPer16Bytes<Word>)
                              : ceil_div(a.rows * ceil_div(a.columns, a.m), kSpan / a.m);
  launch(flat ? kernel : select_nm_any_kernel<Word>, dim3(static_cast<unsigned>(blocks)), kThreads,
         0, stream, args);
}

}  // namespace

void select_nm(const SelectNmArgs& args, cudaStream_t stream) {
  if (args.rows == 0 || args.columns == 0) return;
  if (args.dtype == DType::f32) return run<uint32_t>(args, select::kInfinityF32, stream);
  run<uint16_t>(args, args.dtype == DType::f16 ? select::kInfinityF16 : select::kInfinityBf16,
                stream);
}

}  // namespace evoprune::cuda
