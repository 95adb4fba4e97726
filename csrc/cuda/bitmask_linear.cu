// bitmask_linear: a linear layer whose weight has any mask, for few tokens: of float, or one of 16 bits.
// More tokens of 16 bits are for bitmask_linear_mma.cu.
//
//   y[m, n] = act(scale[n] * sum over the kept k of w[n, k] x[m, k] + bias[n])
//
//   a block: 16 rows, up to 8 tokens, 512 columns at a time (1024 of a token of 16 bits)
//
//   words, values   bitmask_rows.cuh                       4 rows a warp, which brings them itself
//   x               token_rows.cuh, for all warps
//
//   piece of a row, two or four columns a lane    1 0 | 0 1 | 1 1 | 0 0 | ..
//   lane l: its columns that are kept             a 0 | 0 b | c d | 0 0      times x of the same columns
//
// A lane finds its values by the population count of the bits before its own, and multiplies where a bit
// is set; nothing else takes part, so NaN and infinity of both sides reach what they should. x is read
// once for the four rows. What 32 columns cost does not depend on the mask. Sums of the lanes are added
// by shuffles at the end, halving what a lane holds each time.
//
// Values and bits are read once from memory, in whole sectors; x is read by every block. Tokens beyond a
// block's are for blocks of their own, next to each other in the grid. Sums in float; deterministic.
// Counted, not measured, for 32 columns of a row, 30 % kept: 10.9 warp instructions and 1.9 bank passes
// for a token of f16, 13.2 and 2.8 of f32, 22.8 and 5.0 for eight of f32; no bank conflicts.
// Source: the layout is ours; values in whole sectors and a warp for several rows as in Gale et al.,
// "Sparse GPU Kernels for Deep Learning", SC 2020.
#include "cuda/bitmask_linear.h"
#include "cuda/bitmask_rows.cuh"
#include "cuda/epilogue.cuh"
#include "cuda/few_tokens.cuh"
#include "cuda/launch.cuh"
#include "cuda/ptx.cuh"
#include "cuda/token_rows.cuh"

namespace evoprune::cuda {

namespace bitmask {

constexpr int kRowsOfWarp = 32 / kOfRow, kRows = 16;

template <typename T, typename S>
using FewChunk = Chunk<S, kRows, 2048 / sizeof(T)>;

template <typename T, typename S, int kTokens>
struct Few : FewChunk<T, S> {
  using C = FewChunk<T, S>;
  static constexpr int kXRow = C::kColumns * static_cast<int>(sizeof(T));  // bytes
  static constexpr int kSharedBytes = kTokens * kXRow + C::kBytes;
};

// sums[r] += the products of a piece of each of the warp's rows with x.
template <typename T, typename S, typename C, int kTokens>
__device__ __forceinline__ void multiply(float (&sums)[kRowsOfWarp][kTokens], const char* x,
                                         const KeptReader<C>& reader, int piece) {
  constexpr int kOfLane = C::kOfLane;
  const int lane = threadIdx.x % 32, row = threadIdx.x / 32 * kRowsOfWarp;
  float of_column[kOfLane][kTokens];
#pragma unroll
  for (int m = 0; m < kTokens; ++m) {
    using Columns = Vector<T, kOfLane>;
    const char* of_piece = x + m * C::kXRow + piece * C::kPiece * static_cast<int>(sizeof(T));
    const Columns columns = reinterpret_cast<const Columns*>(of_piece)[lane];
#pragma unroll
    for (int i = 0; i < kOfLane; ++i) of_column[i][m] = to_float(columns.at[i]);
  }
  const uint32_t place = reader.place(row, piece);
  unrolled<kRowsOfWarp>([&](auto r) {
    Kept kept = reader.template read<r.value>(place);
#pragma unroll
    for (int i = 0; i < kOfLane; ++i)
      ptx::multiply_taken(sums[r.value], kept.at, kept.bits & 1u << i, of_column[i], S{});
  });
}

// Adds kCount numbers over the lanes, halving them while there are two: lane l returns the sum of number
// l / (32 / kCount).
template <int kCount>
__device__ __forceinline__ float add_lanes(float (&v)[kCount], int apart = 16) {
  if constexpr (kCount > 1) {
    const bool upper = threadIdx.x & apart;
    float half[kCount / 2];
#pragma unroll
    for (int i = 0; i < kCount / 2; ++i) {
      const float own = upper ? v[kCount / 2 + i] : v[i], other = upper ? v[i] : v[kCount / 2 + i];
      half[i] = own + __shfl_xor_sync(kAll, other, apart);
    }
    return add_lanes(half, apart / 2);
  } else {
    float sum = v[0];
    for (; apart > 0; apart /= 2) sum += __shfl_xor_sync(kAll, sum, apart);
    return sum;
  }
}

template <typename T, int kTokens>
__device__ __forceinline__ void finish(float (&sums)[kRowsOfWarp][kTokens],
                                       const BitmaskLinearArgs& args, int64_t first_row,
                                       int64_t token) {
  constexpr int kCount = kRowsOfWarp * kTokens, kLanes = 32 / kCount;  // lanes with the same sum
  float all[kCount];
#pragma unroll
  for (int i = 0; i < kCount; ++i) all[i] = sums[i % kRowsOfWarp][i / kRowsOfWarp];
  const float sum = add_lanes(all);
  const int lane = threadIdx.x % 32, number = lane / kLanes;
  const int64_t n = first_row + number % kRowsOfWarp, m = token + number / kRowsOfWarp;
  if (lane % kLanes != 0 || n >= args.rows || m >= args.tokens) return;
  const Epilogue& e = args.epilogue;
  const float z = activate(fmaf(sum, scale_at(e, n), bias_at(e, n)), e.activation);
  static_cast<T*>(args.y)[m * args.rows + n] = from_float<T>(z);
}

}  // namespace bitmask

template <typename T, typename S, int kTokens>
__global__ void __launch_bounds__(bitmask::kRows* bitmask::kOfRow, 4)
    bitmask_linear_kernel(BitmaskLinearArgs args, int token_blocks) {
  using namespace bitmask;
  using C = Few<T, S, kTokens>;
  using X = TokenRows<T, C::kColumns, C::kXRow, C::kThreads>;
  extern __shared__ __align__(128) char shared[];
  const uint32_t words = ptx::shared_address(shared) + kTokens * C::kXRow;
  const int64_t token = static_cast<int64_t>(blockIdx.x % token_blocks) * kTokens;
  const int64_t first_row = static_cast<int64_t>(blockIdx.x / token_blocks) * kRows;
  const int tokens =
      static_cast<int>(args.tokens - token < kTokens ? args.tokens - token : kTokens);
  RowSource<C> source(args, first_row + threadIdx.x / kOfRow, words, words + kRows * C::kWordsRow);
  const KeptReader<C> reader(words);
  const T* x = static_cast<const T*>(args.x) + token * args.columns;
  float sums[kRowsOfWarp][kTokens] = {};
  for (int64_t first = 0; first < args.columns; first += C::kColumns) {
    const int64_t left = args.columns - first;
    const int count = left < C::kColumns ? static_cast<int>(left) : C::kColumns;
    const int pieces = (count + C::kPiece - 1) / C::kPiece;
    if (first > 0) __syncthreads();
    source.bring();
    X::stage(ptx::shared_address(shared), x, args.columns, tokens, kTokens, first,
             pieces * C::kPiece);
    ptx::cp_async_commit();
    ptx::cp_async_wait<0>();
    __syncthreads();
#pragma unroll 1
    for (int piece = 0; piece < pieces; ++piece) multiply<T, S>(sums, shared, reader, piece);
  }
  finish<T>(sums, args, first_row + threadIdx.x / 32 * kRowsOfWarp, token);
}

namespace bitmask {

template <typename T, typename S, int kTokens>
void run(const BitmaskLinearArgs& args, cudaStream_t stream) {
  using C = Few<T, S, kTokens>;
  const int64_t token_blocks = ceil_div(args.tokens, kTokens);
  const int64_t blocks = ceil_div(args.rows, kRows) * token_blocks;
  launch(bitmask_linear_kernel<T, S, kTokens>, dim3(static_cast<unsigned>(blocks)), C::kThreads,
         C::kSharedBytes, stream, args, static_cast<int>(token_blocks));
}

}  // namespace bitmask

void bitmask_linear(const BitmaskLinearArgs& args, cudaStream_t stream) {
  if (args.rows == 0 || args.tokens == 0) return;
  if (bitmask_takes_mma(args)) return bitmask_linear_mma(args, stream);
  few::with_types(args.dtype, args.stored, [&](auto x, auto value) {
    using T = decltype(x);
    using S = decltype(value);
    if constexpr (sizeof(T) == 2) {
      bitmask::run<T, S, 1>(args, stream);
    } else {
      few::with_tokens<T>(args.tokens, [&](auto tokens) {
        bitmask::run<T, S, decltype(tokens)::value>(args, stream);
      });
    }
  });
}

}  // namespace evoprune::cuda
