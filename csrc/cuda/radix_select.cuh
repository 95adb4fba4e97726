// Radix select: the k highest of the scores of a list of tensors, as masks. Exact, no host sync.
//
//   mask[i] = rank of scores[i] among the scores of all tensors < keep
//
//   scores    | tensor 0               | tensor 1       | ..     flat index: through the list
//   blocks    | 0     | 1     | 2      | 3     | 4      | ..     `chunk` scores each, in that order
//   tile      |256 threads x 16 bytes|256 x 16|256 x 16|256 x 16|    the steps of a block
//
//   key       most significant digit first, kDigit bits a pass (16-bit scores: 2 passes of 8;
//             32: 11, 11, 10; 64: five of 11, one of 9)
//   pass      block:       histogram of the digit, over the keys that match the digits found so far
//             last block:  the sums of all -> the digit of the keep-th key, what is left to keep
//   last      every block also leaves its own histogram: its column at the last digit is how many
//   pass      ties each block holds; the last block turns that into how many each may keep
//   mask      key > threshold, and the ties; one block at most must rank its ties
//
// Grid: up to kBlocksPerProcessor a processor, all resident. Bound by memory: passes + 1 reads of the scores
// (3 or 4 times their bytes, 7 for fp64) and one byte written. Ties: the lowest flat index wins, by
// counting in order; no position depends on the order in which blocks run. Keys: select/rank.h.
// Source: Alabi et al., "Fast k-Selection Algorithms for Graphics Processing Units", JEA 2012.
#pragma once

#include "cuda/launch.cuh"
#include "cuda/radix_parts.cuh"
#include "select/rank.h"

namespace evoprune::cuda::radix {

// ---- a pass ----
template <typename Word>
__device__ __forceinline__ void count_digits(const Args<Word>& args, uint32_t* counts) {
  const Chunk<Word> chunk = own_chunk(args);
  const Word prefix = args.first ? Word{0} : static_cast<Word>(args.scratch.found[0]);
  const uint32_t low = (1u << args.bits) - 1;
  const auto count = [&](Word word) {
    const Word top = select::rank_key(word, args.infinity) >> args.shift;
    if (static_cast<Word>(top >> args.bits) == prefix)
      atomicAdd(&counts[static_cast<uint32_t>(top) & low], 1u);
  };
  constexpr int kPer = kPer16Bytes<Word>;
  int64_t start = 0;
  for (; chunk.aligned && start + kTile<Word> <= chunk.size; start += kTile<Word>) {
    Vector<Word, kPer> words[kVectors];
#pragma unroll
    for (int v = 0; v < kVectors; ++v)
      words[v] = load_bits(chunk.scores + start + (v * kThreads + threadIdx.x) * kPer);
#pragma unroll
    for (int v = 0; v < kVectors; ++v)
#pragma unroll
      for (int i = 0; i < kPer; ++i) count(words[v].at[i]);
  }
  for (int64_t i = start + threadIdx.x; i < chunk.size; i += kThreads) count(chunk.scores[i]);
}

// By the last block: the digit of the keep-th key from the totals of all blocks, which are zeroed.
__device__ __forceinline__ uint32_t find_digit(const Scratch& scratch, int bits, uint64_t prefix,
                                               int64_t keep, int64_t& left) {
  __shared__ uint32_t digit;
  __shared__ int64_t kept_of_digit;
  const int per = (1 << bits) / kThreads,
            top = (1 << bits) - 1 - static_cast<int>(threadIdx.x) * per;
  int64_t mine = 0, total;
// more at once would spill
#pragma unroll 2
  for (int i = 0; i < per; ++i) mine += static_cast<int64_t>(__ldcg(&scratch.totals[top - i]));
  int64_t above = sum_before(mine, total);
  if (above < keep && keep <= above + mine) {
    int bin = top;
    for (;; --bin) {
      const int64_t count = static_cast<int64_t>(__ldcg(&scratch.totals[bin]));
      if (keep <= above + count) break;
      above += count;
    }
    digit = static_cast<uint32_t>(bin);
    kept_of_digit = keep - above;
    scratch.found[0] = prefix << bits | static_cast<uint64_t>(bin);
    scratch.found[1] = static_cast<uint64_t>(keep - above);
  }
  for (int i = 0; i < per; ++i) scratch.totals[top - i] = 0;
  __syncthreads();
  left = kept_of_digit;
  return digit;
}

// By the last block of the last pass: how many of its ties each block keeps.
__device__ __forceinline__ void share_ties(const Scratch& scratch, int64_t blocks, int bits,
                                           uint32_t digit, int64_t left) {
  int64_t before_step = 0;
  for (int64_t start = 0; start < blocks; start += kThreads) {
    const int64_t block = start + threadIdx.x;
    const int64_t ties = block < blocks ? __ldcg(&scratch.own[(block << bits) + digit]) : 0;
    int64_t total;
    const int64_t before = before_step + sum_before(ties, total);
    const int64_t quota = left > before ? left - before : 0;
    if (block < blocks) scratch.quota[block] = quota >= ties ? kAllTies : quota;
    before_step += total;
  }
}

template <typename Word>
__global__ void __launch_bounds__(kThreads, kBlocksPerProcessor)
    radix_count_kernel(const __grid_constant__ Args<Word> args) {
  __shared__ uint32_t counts[kMaxBins];
  __shared__ bool is_last;
  const int bins = 1 << args.bits;
  for (int i = threadIdx.x; i < bins; i += kThreads) counts[i] = 0;
  const uint64_t prefix = args.first ? 0 : args.scratch.found[0];
  const int64_t keep = args.first ? args.keep : static_cast<int64_t>(args.scratch.found[1]);
  __syncthreads();
  count_digits(args, counts);
  __syncthreads();
  uint32_t* own = args.scratch.own + ((args.first_block + blockIdx.x) << args.bits);
  for (int i = threadIdx.x; i < bins; i += kThreads) {
    const uint32_t count = counts[i];
    if (args.last) own[i] = count;
    if (count != 0)
      atomicAdd(reinterpret_cast<unsigned long long*>(&args.scratch.totals[i]),
                static_cast<unsigned long long>(count));
  }
  __threadfence();
  __syncthreads();
  if (threadIdx.x == 0) is_last = atomicAdd(args.scratch.finished, 1u) + 1 == args.blocks;
  __syncthreads();
  if (!is_last) return;
  __threadfence();
  int64_t left;
  const uint32_t digit = find_digit(args.scratch, args.bits, prefix, keep, left);
  if (args.last) share_ties(args.scratch, args.blocks, args.bits, digit, left);
}

// ---- the mask ----
// Keeps the first `left` ties of the block, step by step in flat order.
struct Ties {
  int64_t left;

  // `ties`: bits of this thread's entries, which come before those of the next thread.
  __device__ __forceinline__ uint32_t keep(uint32_t ties) {
    int64_t total;
    int64_t room = left - sum_before(__popc(ties), total);
    uint32_t kept = 0;
    for (; ties != 0 && room > 0; --room) {
      kept |= ties & (0u - ties);
      ties &= ties - 1;
    }
    left -= total;
    return kept;
  }
};

template <typename Word>
__global__ void __launch_bounds__(kThreads, kBlocksPerProcessor)
    radix_mask_kernel(const __grid_constant__ Args<Word> args) {
  const Chunk<Word> chunk = own_chunk(args);
  const Word threshold = static_cast<Word>(args.scratch.found[0]);
  Ties tied{args.scratch.quota[args.first_block + blockIdx.x]};
  const bool ranked = tied.left > 0;
  const Word bound = tied.left == kAllTies ? threshold : static_cast<Word>(threshold + 1);
  constexpr int kPer = kPer16Bytes<Word>;
  int64_t start = 0;
  for (; chunk.aligned && start + kTile<Word> <= chunk.size; start += kTile<Word>) {
    Vector<Word, kPer> words[kVectors];
#pragma unroll
    for (int v = 0; v < kVectors; ++v)
      words[v] = load_bits(chunk.scores + start + (v * kThreads + threadIdx.x) * kPer);
#pragma unroll
    for (int v = 0; v < kVectors; ++v) {
      uint32_t kept = 0, ties = 0;
#pragma unroll
      for (int i = 0; i < kPer; ++i) {
        const Word key = select::rank_key(words[v].at[i], args.infinity);
        kept |= static_cast<uint32_t>(key >= bound) << i;
        ties |= static_cast<uint32_t>(key == threshold) << i;
      }
      if (ranked) kept |= tied.keep(ties);
      store_mask<kPer>(chunk.mask + start + (v * kThreads + threadIdx.x) * kPer, kept);
    }
  }
  for (; start < chunk.size; start += kThreads) {
    const int64_t i = start + threadIdx.x;
    const bool inside = i < chunk.size;
    const Word key = inside ? select::rank_key(chunk.scores[i], args.infinity) : Word{0};
    bool kept = key >= bound;
    if (ranked) kept |= tied.keep(inside && key == threshold) != 0;
    if (inside) chunk.mask[i] = kept;
  }
}

// ---- host ----
// Launches `kernel` over the whole list, kTensors tensors at a time.
template <typename Word>
void launch_over(void (*kernel)(Args<Word>), const RadixSelectArgs& list, Args<Word> args,
                 cudaStream_t stream) {
  args.first_block = 0;
  for (int64_t next = 0; next < list.count;) {
    int used = 0;
    int32_t blocks = 0;
    for (; next < list.count && used < kTensors; ++next) {
      const RankedTensor& tensor = list.tensors[next];
      if (tensor.size == 0) continue;
      args.table.scores[used] = tensor.scores;
      args.table.mask[used] = tensor.mask;
      args.table.size[used] = tensor.size;
      args.table.first_block[used++] = blocks;
      blocks += static_cast<int32_t>(ceil_div(tensor.size, args.chunk));
    }
    if (used == 0) return;
    for (int i = used; i < kTensors; ++i) args.table.first_block[i] = INT32_MAX;
    launch(kernel, dim3(static_cast<unsigned>(blocks)), kThreads, 0, stream, args);
    args.first_block += blocks;
  }
}

// Writes the masks; `scratch` has plan.bytes bytes, aligned to 8.
template <typename Word>
void select(const RadixSelectArgs& list, const RadixPlan& plan, Word infinity, void* scratch,
            cudaStream_t stream) {
  check(cudaMemsetAsync(scratch, 0, kHeadWords * sizeof(uint64_t), stream), "cudaMemsetAsync");
  auto* words = static_cast<uint64_t*>(scratch);
  Args<Word> args{};
  args.scratch.totals = words;
  args.scratch.found = words + kMaxBins;
  args.scratch.finished = reinterpret_cast<uint32_t*>(words + kMaxBins + 2);
  args.scratch.quota = reinterpret_cast<int64_t*>(words + kHeadWords);
  args.scratch.own = reinterpret_cast<uint32_t*>(args.scratch.quota + plan.blocks);
  args.chunk = plan.chunk;
  args.blocks = plan.blocks;
  args.keep = list.keep;
  args.infinity = infinity;
  for (int left = kBits<Word>; left > 0; left -= args.bits, ++args.scratch.finished) {
    args.bits = left < kDigit<Word> ? left : kDigit<Word>;
    args.shift = left - args.bits;
    args.first = left == kBits<Word>;
    args.last = args.shift == 0;
    launch_over(radix_count_kernel<Word>, list, args, stream);
  }
  launch_over(radix_mask_kernel<Word>, list, args, stream);
}

}  // namespace evoprune::cuda::radix
